"""Paths that a user gives, and names in files that become paths."""

import fnmatch
import importlib.util
import json
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

from bigjax import config, main, modules, paths
from bigjax.arguments import Arguments, Command, Flag
from bigjax.config.keys import PATHS
from bigjax.data.files import cache_folder
from bigjax.errors import UserError
from bigjax.interop import files, origin
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from tests import helpers

CONFIG = "--config=configs/gpt/docstrings.py"
_LABELLED = ("data.tokenizer.path", "data.train", "data.valid", "data.test")
# Keys of modules that are paths, by config.
PATH_KEYS = {
    "configs/gpt/docstrings.py:tiny": ("data.tokenizer.path", "data.sources.docstrings.path"),
    "configs/bert/finetune.py:tiny": _LABELLED,
    "configs/seqgan/headlines.py": (
        *_LABELLED,
        *("task.hot_words_file", "task.thesaurus", "task.embeddings"),
    ),
    "configs/seqgan/oracle.py": ("data.params",),
}


# --- Folders whose names libraries read in their own way --------------------------------------


def state(x: float) -> State:
    return State(jnp.int32(x), {"w": jnp.arange(4.0) + x}, {"c": jnp.int32(x)}, {}, None, False)


def save(folder, step: int) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(step, state(step), {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()


def restored(folder) -> float:
    on_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    want = {"params": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=on_device)}
    checkpoints = Checkpoints(folder, read_only=True)
    items, _ = checkpoints.restore(
        checkpoints.resolve_step(None), {"params": {"w": want["params"]}}
    )
    checkpoints.close()
    return float(items["params"]["w"][0])


@pytest.mark.parametrize(
    "name",
    ["a[1]b", "[!a]", "a*?", "**", "{x} %20 #'\" \n~$é 日本"],
    ids=["range", "not", "wildcards", "two stars", "others"],
)
def test_a_run_in_a_folder_of_any_name_is_saved_and_read_again(tmp_path, name):
    folder = tmp_path / name / "run [0-9]"
    with jax.set_mesh(mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])):
        save(folder, 1)
        save(folder, 2)  # by another process, which finds the first
        assert restored(folder) == 2.0 and workdir_lib.saved_steps(str(folder)) == {1, 2}
        folder.rename(tmp_path / name / "another [x]")
        assert restored(tmp_path / name / "another [x]") == 2.0


@pytest.mark.parametrize(
    "name, words", [("a\\b", "\\\\"), ("gs:", "'gs:'"), ("a\udcffb", "UTF-8"), ("a\0b", "NUL")]
)
def test_a_folder_that_the_libraries_would_misread_is_refused(tmp_path, name, words):
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError) as e:
            Arguments([f"--workdir={folder}"])
        assert words in str(e.value) and "--workdir" in str(e.value)


# --- Home folders -----------------------------------------------------------------------------


def test_the_home_folder_in_every_flag_and_every_key_that_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy("configs/gpt/docstrings.py", tmp_path / "c.py")
    given = Arguments(
        ["--config=~/c.py:tiny", "--workdir=~/w", "--workdir=gs:x", "--out=~/o.png"],
        Command((Flag("out", "a picture", value="FILE"),), config=True, workdirs=2),
    )
    assert given.flags.workdir == [f"{tmp_path}/w", "gs:x"]
    assert given.flags.out == f"{tmp_path}/o.png"
    for file, keys in PATH_KEYS.items():
        keys = [*PATHS, *keys]
        file = file.replace("configs/gpt/docstrings.py", "~/c.py")
        c, overridden = Arguments(
            [
                f"--config={file}",
                *(f"--config.{k}=~/x y" for k in keys),
                *["--config.task.augment=0.5"] * ("task.thesaurus" in keys),
            ]
        ).config()
        assert {config.get(c, k) for k in keys} == {f"{tmp_path}/x y"}
        assert overridden["init_from"] == ""


@pytest.mark.parametrize("file", PATH_KEYS)
def test_every_path_key_is_declared(file):
    c, _ = Arguments([f"--config={file}"]).config()
    patterns = [*PATHS, *modules.path_schemes(c)]
    keys = [k for k, v in config.sorted_leaves(c) if any(map(_matches(k), patterns))]
    assert sorted(keys) == sorted([*PATHS, *PATH_KEYS[file]])
    assert all(isinstance(config.get(c, key), str) for key in keys)
    for pattern in patterns:
        assert any(_matches(k)(pattern) for k in keys), pattern


def _matches(key):
    return lambda pattern: fnmatch.fnmatchcase(key, pattern)


def test_a_cache_belongs_to_whoever_runs_a_command(monkeypatch, tmp_path):
    """So config.json keeps the path as it was written."""
    c, _ = Arguments([CONFIG]).config()
    assert c.data.cache_dir == "~/.cache/bigjax"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(c.data.cache_dir, "a") == tmp_path / ".cache/bigjax/a"


@pytest.mark.parametrize(
    "path, words",
    [
        ("~nobody-of-this-name/x", ["nobody-of-this-name", "./~nobody"]),
        ("file:///tmp/x", ["gs://", "file:///tmp/x"]),
        ("http://x/y", ["gs://"]),
        ("s3://b/run", ["Use gs://, or", "s3:// is supported only for data"]),
        ("s3://b", ["Use gs://, or"]),
        ("S3://b/run", ["Use gs://, or"]),
        ("", ["--workdir is empty"]),
    ],
)
def test_invalid_paths_are_refused(path, words):
    with pytest.raises(UserError) as e:
        Arguments([f"--workdir={path}"])
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", CONFIG, "--workdir=s3://b/x"], ["eval", "--workdir=s3://b/x"]),
        *(["report", "--workdir=runs", "--out=s3://b/x.png"], ["report", "--workdir=s3://b/x"]),
        ["seqgan-report", "--workdir=runs", "--out=s3://b/x.png"],
        ["export", "--workdir=runs", "--to=s3://b/x"],
        ["import", "--from=s3://b/x", "--workdir=runs"],
        ["predict", "--workdir=runs", "--input=s3://b/x.tsv", "--output=s3://b/y.tsv"],
        ["tokenizer", CONFIG, "--out=s3://b/x"],
        ["config", "--config=s3://b/x.py"],
        *(["config", CONFIG, f"--config.{key}=s3://b/x"] for key in ("init_from", "resume_from")),
        ["config", CONFIG, "--config.data.tokenizer.path=s3://b/x"],
    ],
    ids=" ".join,
)
def test_s3_is_refused_where_bigjax_does_not_read_or_write_it(arguments, capsys):
    assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert "s3://b/" in err and "Use gs://, or" in err and err.count("\n") == 1


def test_data_may_lie_on_s3():
    finetune = "--config=configs/bert/finetune.py:tiny"
    for file, key in ((finetune, "data.train"), (CONFIG, "data.sources.docstrings.path")):
        c, _ = Arguments([file, f"--config.{key}=s3://b/x"]).config()
        assert config.get(c, key) == "s3://b/x"
    with pytest.raises(UserError, match=r"config.data.train is .*Use gs:// or s3://, or"):
        Arguments([finetune, "--config.data.train=az://b/x"]).config()


def test_paths_without_a_home_folder_are_unchanged():
    for path in ("./~x", "a~", "x/~y", "gs://b/~", "/a b/", "tfds:glue/sst2", "$HOME/x", ""):
        assert paths.expand(path, "x") == path


def test_no_home_folder_at_all(monkeypatch):
    """As in a container whose user has no entry in the password file."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("HOME")
    with pytest.raises(UserError, match="data.cache_dir is '~/.cache/bigjax'.*HOME is not set"):
        cache_folder("~/.cache/bigjax", "a")
    with pytest.raises(UserError, match="--workdir is '~/x'.*set HOME"):
        Arguments(["--workdir=~/x"])


@pytest.mark.parametrize("home", ["", "here"])
def test_an_invalid_home_folder(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match=f"--workdir is '~/x'.*HOME is '{home}'.*set HOME"):
        Arguments(["--workdir=~/x"])
    with pytest.raises(UserError, match="HOME is"):
        paths.expand("~", "x")
    assert paths.expand("~root/x", "x") == os.path.expanduser("~root/x")


# --- Config files -----------------------------------------------------------------------------


def write_config(folder, rate: str) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "base.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom bigjax import config\n"
        "@dataclasses.dataclass\nclass Rate:\n  value: float\n"
        f"def get_config(variant=''):\n  c = config.new_config()\n"
        f"  c.optim.learning_rate = Rate({rate}).value\n  return c\n"
    )
    (folder / "mine.py").write_text(
        "import base\ndef get_config(variant=''):\n  import base as again\n"
        "  return again.get_config(variant)\n"
    )
    return str(folder / "mine.py")


def test_a_config_imports_the_files_beside_it(tmp_path, monkeypatch):
    before, modules = [*sys.path], {*sys.modules}
    one, two = (write_config(tmp_path / name, rate) for name, rate in (("a", "0.25"), ("b", "0.5")))
    for file, rate in ((one, 0.25), (two, 0.5), (one, 0.25)):
        assert config.load_file(file).optim.learning_rate == rate
    monkeypatch.chdir(tmp_path)
    assert config.load_file("b/mine.py").optim.learning_rate == 0.5
    monkeypatch.chdir(tmp_path / "a")
    assert config.load_file("mine.py").optim.learning_rate == 0.25
    assert sys.path == before and not {"base", "bigjax_config_file"} & {*sys.modules}
    assert modules <= {*sys.modules}


def test_a_library_that_a_config_imports_first_stays_imported(tmp_path):
    """Also below the config's folder, such as a virtual environment in the home folder."""
    name = "bigjax_test_library"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{name}.py").write_text("")
    (tmp_path / "c.py").write_text(
        f"import sys; sys.path.append({str(tmp_path / 'lib')!r})\nimport {name}\n"
        "from bigjax import config\ndef get_config(variant=''):\n  return config.new_config()\n"
    )
    try:
        config.load_file(str(tmp_path / "c.py"))
        assert name in sys.modules
    finally:
        sys.modules.pop(name, None)
        sys.path.remove(str(tmp_path / "lib"))


def test_the_name_of_a_config_file_may_hold_a_colon(tmp_path):
    file = tmp_path / "a:b" / "c:d.py"
    file.parent.mkdir()
    shutil.copy("configs/gpt/docstrings.py", file)
    assert config.load_file(str(file)).train.steps == 600
    assert config.load_file(f"{file}:tiny").train.steps < 100
    with pytest.raises(UserError, match="does not exist"):
        config.load_file("x" * 5000)


def test_a_config_that_ends_python(tmp_path):
    (tmp_path / "c.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="line 2: SystemExit"):
        config.load_file(str(tmp_path / "c.py"))


# --- Names in files ---------------------------------------------------------------------------

HOSTILE = ["..", ".", "", "../x", "/etc/x", "a/b", "a\\b", "a\0b", "x" * 300, "a\nb", "\ud800"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_invalid_file_names_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="valid file name"):
        paths.check_file_name(name, "here")
    stored = json.loads(config.to_json(helpers.filled(config.new_config())))
    for section, entry, words in (
        (stored["evals"], dict(kind="loss", every=1), r"/run/config\.json"),
        (stored["data"]["sources"], dict(kind="text", path="x"), "valid file name|/run/config"),
    ):
        section[name] = entry
        with pytest.raises(UserError, match=words):
            modules.fill(config.from_json(json.dumps(stored), "/run/config.json"))
        del section[name]
    index = {"weight_map": {"a": name}}
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="valid file name|no weight_map"):
        files.Tensors(tmp_path)


@pytest.mark.parametrize("where", ["files", "headers", "texts"])
def test_an_untrusted_import_cannot_write_or_read_outside_its_folder(tmp_path, where):
    layout = dict(texts={}, headers={}, entries={}, copies={}, buffers=[], unknown=[])
    stored = dict(family="bert", architecture="BertModel", config={}, dtype="float32", dtypes={})
    stored |= dict(metadata={}, files=[], kept=[], layout=layout)
    (tmp_path / origin.ORIGIN).write_text(json.dumps(stored))
    assert origin.load(tmp_path).files == []
    if where == "files":
        stored["files"] = ["vocab.txt", "../../../secret"]
    else:
        layout[where] = {"../outside.safetensors": ""}
    (tmp_path / origin.ORIGIN).write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r"huggingface\.json: '\.\.(/.*)?' is not a valid file name"
    ):
        origin.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "null", '{"files": []}', '{"layout": 3}'])
def test_damaged_import_data_is_refused(tmp_path, text):
    (tmp_path / origin.ORIGIN).write_text(text)
    with pytest.raises(UserError, match="is not as the import wrote it"):
        origin.load(tmp_path)


def test_the_test_of_sibling_imports_can_fail(tmp_path):
    """Without load_file the file beside a config cannot be imported."""
    spec = importlib.util.spec_from_file_location("x", write_config(pathlib.Path(tmp_path), "1"))
    with pytest.raises(ModuleNotFoundError):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
