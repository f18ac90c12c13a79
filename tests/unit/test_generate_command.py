"""The command `bigjax generate`, on decoders whose texts are known."""

import json
import pathlib
import types

from ml_collections import ConfigDict
import pytest

from bigjax.arguments import Arguments
from bigjax.cli import generate as cli
from bigjax.data.tables import read_table
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.data.tokenizers.sentencepiece import SentencePiece, train_sentencepiece
from bigjax.errors import UserError
from bigjax.infer import files, generate
from bigjax.models import whisper
from tests.decoders import continuing_decoder, copying_decoder

SOURCES = ("ab", "a longer one", "c", "the fourth")


def flags(*arguments):
    f = Arguments([*arguments], cli.COMMAND).flags
    cli.check_flags(f)
    return f


def section(**fields) -> ConfigDict:
    columns = dict(source="source", target="target", prefix="")
    return ConfigDict(dict(columns=columns, prefix="", seq_len=20, target_len=16, **fields))


def run_command(
    monkeypatch,
    f,
    config,
    weights="w",
    overrides=(),
    family=None,
    load=None,
    tokenizer=None,
    workdir="run",
):
    """cli.run with a copying decoder in place of the run's model. load: called to load it."""
    tokenizer = tokenizer or Bytes()
    decoder = copying_decoder(vocab_size=tokenizer.vocab_size)
    family = family or types.SimpleNamespace(decoder=lambda c: decoder)
    loaded = types.SimpleNamespace(step=3, fingerprint=weights)
    monkeypatch.setattr("bigjax.modules.of", lambda config, section: family)
    monkeypatch.setattr("bigjax.data.load_tokenizer", lambda folder, python_path: tokenizer)
    monkeypatch.setattr("bigjax.train.workdir.existing", pathlib.Path)
    monkeypatch.setattr("bigjax.train.load.load", load or (lambda *_, **__: loaded))
    monkeypatch.setattr("bigjax.train.load.decoder_of", lambda *_: (decoder, 20.0))
    arguments = types.SimpleNamespace(
        flags=f, workdir=workdir, step=None, overrides=[*overrides], config_of_run=lambda: config
    )
    cli.run(arguments)


@pytest.mark.parametrize(
    "change, used",
    [
        ({}, True),
        ({"workdir": "./run/"}, True),
        ({"weights": "x"}, False),
        ({"overrides": ["--config.model.dtype=y"]}, False),
    ],
    ids=str,
)
def test_a_restart_uses_results_of_the_same_model_only(change, used, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.tsv").write_text("source\n" + "".join(f"{s}\n" for s in SOURCES))
    f = flags(f"--input={tmp_path / 'in.tsv'}", f"--output={tmp_path / 'out.csv'}", "--batch=2")
    config = ConfigDict(dict(data=section(), model=dict(name="t5"), python_path=""))

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("bigjax.infer.predict.write", fail)
        run_command(m, f, config)
    run_command(monkeypatch, f, config, **change)
    out = capsys.readouterr().out
    assert ("4 of 4 are in" in out) == used and ("they are not used" in out) != used
    assert "out.csv: 4 rows, step 3 of " in out and not (tmp_path / "out.csv.partial").exists()


@pytest.mark.parametrize("more", [(), ("--beam=3",), ("--beam=3", "--n_best=2")], ids=len)
def test_the_command_writes_a_file(more, tmp_path):
    (tmp_path / "in.tsv").write_text("id\tsource\n" + "".join(f"7\t{s}\n" for s in SOURCES))
    output = tmp_path / "out.jsonl"
    f = flags(f"--input={tmp_path / 'in.tsv'}", f"--output={output}", "--batch=2", *more)
    config = ConfigDict(dict(data=section()))
    rows = cli._rows(f, config)
    cli._write_file(f, Bytes(), copying_decoder(), 20.0, rows, config, ["step 3 of run"])
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["source"], row["generated"]) for row in written] == [
        ("7", source, source) for source in SOURCES
    ]
    assert ("score" in written[0]) == bool(more)
    assert len(written[0].get("n_best", ())) == (2 if len(more) == 2 else 0)
    assert {p.name for p in tmp_path.iterdir()} == {"in.tsv", "out.jsonl"}


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_a_tsv_has_the_line_ends_of_generated_texts_as_codes(ending, tmp_path):
    text = "a\tb\nc\rd\\n"
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "7", "text": text}))
    output = tmp_path / f"out.{ending}"
    f = flags(f"--input={tmp_path / 'in.jsonl'}", f"--output={output}", "--column=text")
    config = ConfigDict(dict(data=section()))
    rows = cli._rows(f, config)
    for row in rows:  # the text would be refused in a .tsv, but not what is generated for it
        row["row"] = {"id": "7"}
    cli._write_file(f, Bytes(), copying_decoder(), 20.0, rows, config, ["step 3"])
    (row,) = read_table(output, ["generated"])
    assert row["generated"] == (r"a\tb\nc\rd\\n" if ending == "tsv" else text)


def test_an_input_that_a_tsv_cannot_hold_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch
):
    (tmp_path / "in.jsonl").write_text('{"source": "a"}\n{"source": "b\\tc"}\n')
    f = flags(f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.tsv'}")
    config = ConfigDict(dict(data=section(), model=dict(name="t5"), python_path=""))

    with pytest.raises(UserError, match=r"column 'source' of row 2 has a tab or a line end"):
        run_command(monkeypatch, f, config, load=pytest.fail)


def test_the_prefix_of_the_data_and_of_a_row_is_before_its_source(tmp_path):
    (tmp_path / "in.csv").write_text("text,task\nabc,de:\nx,\n")
    f = flags(f"--input={tmp_path / 'in.csv'}", "--output=out.csv", "--column=text")
    data = section()
    data.prefix, data.columns.prefix = "T5 ", "task"
    rows = cli._rows(f, ConfigDict(dict(data=data)))
    assert [row["source"] for row in rows] == ["T5 de: abc", "T5 x"]
    (tmp_path / "in.csv").write_text("text\nabc\n")
    # As in training
    with pytest.raises(UserError, match="no columns are called 'task'.*--config.*prefix=task.$"):
        cli._rows(f, ConfigDict(dict(data=data)))


def write_continuations(folder, prompts, *arguments, max_len=32, sure=9.0) -> list[str]:
    """What the command writes for a file of prompts."""
    (folder / "in.csv").write_text("text\n" + "".join(f"{p}\n" for p in prompts))
    f = flags(f"--input={folder / 'in.csv'}", f"--output={folder / 'out.csv'}", *arguments)
    config = ConfigDict(dict(data={}))
    rows = cli._rows(f, config)
    cli._write_file(f, Bytes(), continuing_decoder(max_len), sure, rows, config, ["step 1"])
    return [row["generated"] for row in read_table(folder / "out.csv", ["generated"])]


@pytest.mark.parametrize("more", [("--temperature=0",), ("--beam=2",)])
def test_a_long_prompt_does_not_shorten_the_texts_of_other_batches(more, tmp_path):
    prompts = ["a", "b" * 28, "c" * 27, "dd"]
    written = write_continuations(tmp_path, prompts, "--batch=2", *more)
    assert written == ["a" * 29, "b" * 3, "c" * 3, "d" * 29]  # 32 tokens with the bos token


def test_other_lengths_of_batches_need_no_compilation(tmp_path):
    write_continuations(tmp_path, ["a", "b" * 14], "--batch=1", "--temperature=0.5", max_len=20)
    before = generate._advance._cache_size()
    for prompts in (["a" * 18, "b" * 13], ["a" * 9, "b" * 16]):
        write_continuations(tmp_path, prompts, "--batch=1", "--temperature=0.5", max_len=20)
    assert generate._advance._cache_size() == before


def test_samples_depend_on_the_seed_and_the_row_and_not_on_the_batch(tmp_path):
    write = lambda *more: write_continuations(tmp_path, ["ab"] * 5, *more, sure=0.0)
    texts = write("--seed=0", "--batch=2")
    assert write("--seed=0", "--batch=1") == write("--seed=0", "--batch=5") == texts
    others = [text for seed in (1, 2, 4) for text in write(f"--seed={seed}", "--batch=2")]
    assert len({*texts, *others}) == 20


def test_samples_of_a_prompt_do_not_depend_on_their_number(capsys):
    def printed(number):
        f = flags("--prompt=a", "--prompt=b", f"--number={number}")
        cli._write(f, Bytes(), continuing_decoder(), 0.0, {})
        return capsys.readouterr().out.splitlines()[1::2]

    first, second, third, fourth = printed(2)
    assert printed(1) == [first, third] and len({first[1:], second[1:], third[1:], fourth[1:]}) == 4


@pytest.mark.parametrize(
    "arguments, words, absent",
    [
        ([], r"in.csv:3: the prompt is 33 tokens long.*at most 31 are.*1 of 2", "max_tokens"),
        (["--max_tokens=28"], r"in.csv:3: .* 33 .*at most 4 are .*--max_tokens=28", "new ones"),
        (
            ["--max_tokens=40"],
            r"--max_tokens is 40; .*at most 31 tokens .model.max_len",
            "prompt",
        ),
    ],
)
def test_a_prompt_without_room_for_text_is_refused_with_its_row(
    arguments, words, absent, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "generate_all", pytest.fail)
    with pytest.raises(UserError, match=words) as e:
        write_continuations(tmp_path, ["abc", "b" * 32], *arguments)
    assert absent not in str(e.value)


def test_a_source_that_is_too_long_is_refused_or_truncated(tmp_path, capsys):
    (tmp_path / "in.tsv").write_text(f"source\nok\n{'x' * 40}\n")
    f = flags(f"--input={tmp_path / 'in.tsv'}", f"--output={tmp_path / 'out.csv'}")
    config = ConfigDict(dict(data=section(truncate=False)))
    run = lambda: cli._write_file(
        f, Bytes(), copying_decoder(), 20.0, cli._rows(f, config), config, ["step 1"]
    )
    with pytest.raises(UserError, match=r"in.tsv:3: the source is 41 tokens long.*20 are allowed"):
        run()
    config.data.truncate = True
    run()
    assert "1 of 2 sources is truncated to 20 tokens" in capsys.readouterr().out
    assert (tmp_path / "out.csv").read_text().endswith(f"{'x' * 40},{'x' * 16}\n")


def test_a_source_of_the_command_line_that_is_too_long_is_refused_or_truncated(capsys):
    f = flags("--prompt=ok", f"--prompt={'x' * 40}")
    write = lambda data: cli._write(f, Bytes(), copying_decoder(), 20.0, data)
    with pytest.raises(
        UserError, match="prompt 2: the source is 41 tokens long and 20 are allowed"
    ):
        write(section(truncate=False))
    write(section(truncate=True))
    assert capsys.readouterr().out.endswith(f"--- 2 of 2\n{'x' * 16}\n")


@pytest.mark.parametrize("name, content", [("in.tsv", "a\nx\n"), ("in.jsonl", '{"a": "x"}\n')])
def test_a_column_that_the_input_lacks_is_refused_with_the_flag_that_names_it(
    name, content, tmp_path
):
    (tmp_path / name).write_text(content)
    f = flags(f"--input={tmp_path / name}", f"--output={tmp_path / 'out.csv'}")
    with pytest.raises(UserError, match="'source'.* 'a'.* For prompts that is --column=source.$"):
        cli._rows(f, ConfigDict(dict(data=section())))


def test_sentinels_are_read_and_printed(monkeypatch, capsys):
    tokenizer = train_sentencepiece(["the quick brown fox " * 9], 280)
    tokenizer = SentencePiece(tokenizer.files()["tokenizer.model"], sentinels=3)
    config = ConfigDict(dict(data=section(), model=dict(name="t5"), python_path=""))
    f = flags("--prompt=the <extra_id_0> fox<extra_id_2>")
    run_command(monkeypatch, f, config, tokenizer=tokenizer)
    assert capsys.readouterr().out == "the<extra_id_0> fox<extra_id_2>\n"


def test_a_model_of_speech_is_refused_before_it_is_loaded(monkeypatch):
    config = ConfigDict(dict(model=dict(name="whisper"), python_path=""))
    with pytest.raises(UserError, match=r"'whisper', which reads rec.* transcribe --workdir=run"):
        run_command(monkeypatch, flags("--prompt=a"), config, family=whisper, load=pytest.fail)


@pytest.mark.parametrize("name", ["seed", "top_k", "top_p", "number"])
def test_flags_of_samples_need_a_temperature_for_an_answer_to_a_source(name, capsys):
    given = ["--prompt=ab", f"--{name}=1"]
    data = section()
    write = lambda *more: cli._write(flags(*given, *more), Bytes(), copying_decoder(), 20.0, data)
    with pytest.raises(UserError, match=rf"--{name} would change nothing.* add --temperature=0.8"):
        write()
    write("--temperature=0.1")
    assert capsys.readouterr().out == "ab\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input=a.tsv"], "--input needs --output"),
        (["--input=a.tsv", "--output=b.tsv", "--prompt=x"], "--prompt is not for --input"),
        (["--output=b.tsv"], "--output is only for --input"),
        (["--temperature=0", "--number=2"], "--number would change nothing: --temperature=0"),
        (["--n_best=2"], "--n_best is only for --beam"),
        (["--beam=2", "--n_best=3"], "n_best is 3"),
        (["--beam=2", "--coverage_penalty=-1"], "coverage_penalty is -1"),
        (["--batch=0", "--input=a.tsv", "--output=b.tsv"], "--batch is 0"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        flags(*arguments)
