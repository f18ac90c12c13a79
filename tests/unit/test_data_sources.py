"""bigjax.data.sources and docstrings: what becomes a document, and what is refused."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import bigjax
from bigjax.data import docstrings, sources
from bigjax.data.sources import from_config, text
from bigjax.errors import UserError
from tests.helpers import text_source

ROOT = str(pathlib.Path(bigjax.__file__).parents[1])


def text_of(source, **kwargs):
    return list(sources.documents(source, **kwargs))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_glob_gives_one_document_a_file_in_order_of_names(tmp_path):
    write(tmp_path / "b.txt", "second\n\nparagraph\n")
    write(tmp_path / "a.txt", "\ufefffirst")
    write(tmp_path / "c.txt", " \n")
    (tmp_path / "d.txt").mkdir()
    assert text_of(text_source("text", str(tmp_path / "*.txt"))) == [
        "first",
        "second\n\nparagraph\n",
    ]


def test_recursive_glob_and_name_with_brackets(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "x.md", "deep")
    write(tmp_path / "y[1].md", "bracket")
    assert text_of(text_source("text", str(tmp_path / "**/*.md"))) == ["deep", "bracket"]
    assert text_of(text_source("text", str(tmp_path / "y[1].md"))) == ["bracket"]
    for folder in ("[D]", "a*", "D"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        write(tmp_path / folder / "sub" / "x.txt", folder)
    assert text_of(text_source("text", str(tmp_path / "[D]/*/*.txt"))) == ["[D]"]
    assert text_of(text_source("text", str(tmp_path / "a*/**/x.txt"))) == ["a*"]
    assert text_of(text_source("text", str(tmp_path / "[DE]/sub/x.txt"))) == ["D"]


def test_single_file_is_grouped_at_blank_lines(tmp_path):
    paragraphs = [f"{i} " + "word " * 130 for i in range(10)]  # 650 characters each
    path = write(tmp_path / "one.txt", "\n\n".join(paragraphs) + "\n")
    documents = text_of(text_source("text", path))
    assert documents == [
        "\n\n".join(paragraphs[:4]),
        "\n\n".join(paragraphs[4:8]),
        "\n\n".join(paragraphs[8:]),
    ]
    assert all(len(document) >= text.DOCUMENT_CHARS for document in documents[:-1])


def test_single_file_without_blank_lines_is_cut_at_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_MAX_CHARS", 50)
    lines = [f"line {i:03d}" for i in range(20)]
    documents = text_of(text_source("text", write(tmp_path / "one.txt", "\n".join(lines))))
    assert len(documents) == 4 and "\n".join(documents) == "\n".join(lines)


def test_bad_utf8_is_replaced_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_READ_BYTES", 4)
    path = write(tmp_path / "x.txt", b"caf\xe9\nok \xff\xfe \xef\xbf\xbd\n")
    counts = {}
    assert text_of(text_source("text", path), counts=counts) == [
        "caf\ufffd\nok \ufffd\ufffd \ufffd"
    ]
    assert counts == {"bad_utf8": 3}  # the last U+FFFD was in the file


def test_bad_utf8_is_refused_with_its_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_READ_BYTES", 4)
    path = write(tmp_path / "x.txt", b"fine\nfine\nb\xe9d\n")
    with pytest.raises(UserError, match=r"x\.txt: byte 11 \(0xE9\) is not UTF-8.*replace"):
        text_of(text_source("text", path), on_bad_utf8="refuse")
    with pytest.raises(UserError, match="data.on_bad_utf8 is .ignore."):
        text_of(text_source("text", path), on_bad_utf8="ignore")


def test_jsonl(tmp_path):
    rows = [{"body": "één"}, {"body": ""}, {"body": "two", "x": 1}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert text_of(text_source("jsonl", path, field="body")) == ["één", "two"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": "x"', r"a\.jsonl:2: not JSON"),
        ('["x"]', r"a\.jsonl:2: found a JSON list"),
        ('{"body": "x"}', r"a\.jsonl:2: no field 'text'; the line has body"),
        ('{"text": 3}', r"a\.jsonl:2: field 'text' holds int"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        text_of(text_source("jsonl", path))


def test_jsonl_lone_surrogate(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud800b"}\n')
    counts = {}
    assert text_of(text_source("jsonl", path), counts=counts) == ["a\ufffdb"]
    assert counts == {"bad_utf8": 1}
    with pytest.raises(UserError, match=r"a\.jsonl:1: character 1 .* lone surrogate"):
        text_of(text_source("jsonl", path), on_bad_utf8="refuse")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_missing_empty_and_unreadable(tmp_path, kind):
    with pytest.raises(UserError, match=r"nothing\.txt.* is no file.*Set it to a file"):
        text_of(text_source(kind, str(tmp_path / "nothing.txt")))
    with pytest.raises(UserError, match=r"is no file"):
        text_of(text_source(kind, str(tmp_path / "*.nothing")))
    with pytest.raises(UserError, match="is a folder"):
        text_of(text_source(kind, str(tmp_path)))
    with pytest.raises(UserError, match="empty path"):
        text_of(text_source(kind))
    path = write(tmp_path / "empty", "\n\n")
    with pytest.raises(UserError, match="empty.* holds no text"):
        text_of(text_source(kind, path))
    os.chmod(path, 0)
    if not os.access(path, os.R_OK):  # root reads everything
        with pytest.raises(UserError, match="cannot read .*empty: Permission denied"):
            text_of(text_source(kind, path))


def test_fingerprint_sees_content_and_not_the_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    a = text_source("text", write(tmp_path / "a.txt", "same"))
    b = text_source("text", write(tmp_path / "elsewhere" / "b.txt", "same"))
    c = text_source("text", write(tmp_path / "c.txt", "SAME"))
    assert sources.fingerprint(a) == sources.fingerprint(b) != sources.fingerprint(c)
    assert sources.fingerprint(text_source("jsonl", a.options.path)) != sources.fingerprint(a)
    with pytest.raises(UserError, match="is no file"):
        sources.fingerprint(text_source("text", str(tmp_path / "none")))


def test_fingerprint_of_large_files_samples(tmp_path, monkeypatch):
    from bigjax.data import files

    monkeypatch.setattr(files, "_HASH_WHOLE_BYTES", 10)
    path = write(tmp_path / "a.txt", "x" * 1000)
    os.utime(path, (1, 1))
    before = sources.fingerprint(text_source("text", path))
    assert sources.fingerprint(text_source("text", path)) == before
    os.utime(path, (2, 2))
    assert sources.fingerprint(text_source("text", path)) != before
    write(tmp_path / "a.txt", "x" * 999 + "y")
    os.utime(path, (1, 1))
    assert sources.fingerprint(text_source("text", path)) != before


def test_fingerprint_of_small_files_sees_every_byte_and_no_time(tmp_path):
    fingerprints = set()
    for content in (b"x" * 900_000, b"x" * 900_000, b"x" * 200_000 + b"y" + b"x" * 699_999):
        path = write(tmp_path / "a.txt", content)
        os.utime(path, (len(fingerprints), 1))
        fingerprints.add(sources.fingerprint(text_source("text", path)))
    assert len(fingerprints) == 2


def test_remote_paths_that_cannot_be_reached_say_why(monkeypatch):
    from etils import epath

    def glob_without_gcsfs(self, pattern):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "glob", glob_without_gcsfs)
    with pytest.raises(UserError, match=r"gs://bucket/\*\.txt.*install gcsfs.*permission"):
        text_of(text_source("text", "gs://bucket/*.txt"))
    with pytest.raises(UserError, match="nope://.*gs://"):
        text_of(text_source("text", "nope://bucket/a.txt"))


def test_from_config():
    assert from_config("a", {"kind": "text", "path": "p"}) == text_source("text", "p", weight=1.0)
    with pytest.raises(UserError, match="'data.sources.a.pth'. Did you mean 'path'"):
        from_config("a", {"kind": "text", "pth": "p"})
    with pytest.raises(UserError, match="Allowed: docstrings, jsonl, text, tfds"):
        from_config("a", {"kind": "csv"})
    for weight in (0, -1.0, float("nan"), float("inf"), "x"):
        with pytest.raises(UserError, match=r"data\.sources\.a\.weight is .* positive"):
            from_config("a", {"kind": "text", "weight": weight})


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    class MySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(300), "test": self._generate_examples(3)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"text": f"documént {i}", "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    MySet(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_array_record(tfds_folder):
    source = text_source("tfds", str(tfds_folder), name="my_set:1.0.0")
    documents = text_of(source)
    assert sorted(documents) == sorted(f"documént {i}" for i in range(300))
    assert documents == text_of(source)
    direct = text_source("tfds", str(tfds_folder / "my_set" / "1.0.0"), split="train[10%:20%]+test")
    assert text_of(direct)[:30] == documents[30:60] and len(text_of(direct)) == 33
    assert sources.fingerprint(source) != sources.fingerprint(direct)
    assert sources.fingerprint(source) == sources.fingerprint(source)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "my_sett:1.0.0"}, "my_sett.*not found.*data_dir"),
        ({"name": "", "path": "nowhere"}, r"nowhere.*dataset_info\.json"),
        ({"split": "dev"}, "cannot read split 'dev'.*train, test"),
        ({"field": "txt"}, "example 0: no field 'txt'; found label, text"),
        ({"field": "label"}, "field 'label' holds int"),
    ],
)
def test_tfds_errors(tfds_folder, change, message):
    fields = {"kind": "tfds", "path": str(tfds_folder), "name": "my_set:1.0.0", **change}
    with pytest.raises(UserError, match="(?s)" + message):
        text_of(text_source(**fields))


MODULE = '''"""Module text that is long enough."""
class A:
    """Class text that is long enough."""
    async def f(self):
        """Method text
            that is indented.
        """
        def inner():
            "Inner functions are left out, being nobody's API."
if True:
    def g():
        """A function under a condition."""
    def again():
        """Method text
            that is indented.
        """
def h(): "Short."
x = 1
"""Not a docstring, only a string here."""
'''


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A library of three files in place of everything installed."""
    write(tmp_path / "one.py", MODULE)
    write(tmp_path / "broken.py", "def (")
    write(tmp_path / "two.py", '"""The second module\n\n    of it."""\n')
    jobs = [["lib", name, str(tmp_path / f"{name}.py")] for name in ("one", "broken", "two")]
    monkeypatch.setattr(docstrings, "python_files", lambda: jobs)
    monkeypatch.setattr(docstrings, "_topics", lambda: [])
    return tmp_path


EXPECTED = [
    ("lib", "one", "Module text that is long enough."),
    ("lib", "one.A", "Class text that is long enough."),
    ("lib", "one.A.f", "Method text\nthat is indented."),
    ("lib", "one.g", "A function under a condition."),
    ("lib", "two", "The second module\n\nof it."),
]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_docstring_records(small_library, processes):
    records = docstrings.records(str(small_library / "cache"), processes)
    assert [tuple(record) for record in records] == EXPECTED
    assert records[0].text == "one\n\nModule text that is long enough."


def test_docstring_cache_is_used_and_mended(small_library, monkeypatch):
    cache = small_library / "cache"
    records = docstrings.records(str(cache))
    monkeypatch.setattr(docstrings, "_parse", lambda *args: pytest.fail("read again"))
    assert docstrings.records(str(cache)) == records
    monkeypatch.undo()
    (path,) = cache.glob("docstrings-*.json")
    path.write_text('[["half')
    monkeypatch.setattr(docstrings, "_parse", lambda *args: [docstrings.Record("a", "b", "c" * 30)])
    monkeypatch.setattr(docstrings, "_topics", lambda: [])
    assert [record.name for record in docstrings.records(str(cache))] == ["b"]


def test_docstring_fingerprint_is_of_content(small_library, monkeypatch):
    """A library that is edited in place, under the same version, gives other documents."""
    cache, module = str(small_library / "cache"), small_library / "two.py"
    before, time = docstrings.fingerprint(cache), module.stat().st_mtime_ns
    os.utime(module, ns=(time + 10**9, time + 10**9))  # installed again: read again
    assert docstrings.fingerprint(cache) == before == docstrings.fingerprint(cache)
    monkeypatch.setattr(docstrings.platform, "python_version", lambda: "4.0.0")
    assert docstrings.fingerprint(cache) == before  # the same text
    write(module, '"""The second module\n\n    of IT."""\n')  # of the same size
    assert docstrings.fingerprint(cache) != before
    assert docstrings.records(cache)[-1].doc == "The second module\n\nof IT."
    assert sources.fingerprint(text_source("docstrings"), cache) == (
        f"docstrings-{docstrings.fingerprint(cache)}"
    )


def test_installed_files_are_found_without_tests():
    modules = {module for _, module, _ in docstrings.python_files()}
    assert {"json.decoder", "numpy.linalg", "jax.numpy", "optax"} <= modules
    assert not any({"test", "tests"} & set(module.split(".")) for module in modules)


def test_docstring_reading_does_not_run_the_main_program_again(small_library):
    """A script without an `if __name__` guard, where spawned workers would start it over."""
    script = write(
        small_library / "main_script.py",
        f"""
from bigjax.data import docstrings
docstrings.python_files = lambda: [["lib", "one", {str(small_library / "one.py")!r}]] * 2
docstrings._topics = lambda: []
print("main ran", len(docstrings.records({str(small_library / "c")!r}, 2)))
""",
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("main ran 4\n", "")
