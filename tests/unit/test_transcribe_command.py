"""`bigjax transcribe` with tiny random models: batches, files that are bad, restarts, refusals."""

import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import arguments, main, process, tasks
from bigjax import config as config_lib
from bigjax.cli import transcribe as transcribe_cli
from bigjax.data.tokenizers import bytes as bytes_lib
from bigjax.errors import UserError
from bigjax.infer import speech, transcripts
from bigjax.infer import windows as windows_lib
from bigjax.infer.generate import Chunk
from bigjax.infer.transcribe import Job, Options
from bigjax.layers.params import unbox
from bigjax.models import whisper
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import State
from tests import helpers
from tests.audio_files import content, write
from tests.unit.test_whisper_tokenizer import CODES, load

RATE = 1600
SIZES = dict(sample_rate=RATE, n_fft=64, hop=16, n_mels=8, max_seconds=3.0, d_model=16, n_layers=1)
SIZES |= dict(n_heads=2, max_len=40)


def tone(seconds, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3000, round(seconds * RATE)).astype(np.int16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(decoder, variables, Config, tokenizer) of Whisper, multilingual."""
    tokenizer = load(tmp_path_factory.mktemp("tokenizer"))
    start = tokenizer.special["<|startoftranscript|>"]
    c = whisper.Config(vocab_size=tokenizer.vocab_size, start_id=start, scan=False, **SIZES)
    return whisper.decoder(c), init(c), c, tokenizer


def init(c):
    inputs = np.zeros((1, 8, c.n_mels), np.float32), np.zeros((1, 1), np.int32)
    return unbox(jax.jit(whisper.Model(c).init)(jax.random.key(1), *inputs))


def logits_of(c, variables, audio, ids):
    """float32 [1, T, V] of the model itself."""
    audio = np.pad(audio, (0, c.n_samples - len(audio)))[None]
    model = lambda v, x, ids: whisper.Model(c).apply(v, whisper.features(c, x), ids).logits
    return np.asarray(jax.jit(model)(variables, audio, ids))


def windows(model, most=99, **options):
    return windows_lib.ModelWindows(*model, Options(**options), most)


def jobs_of(n, prompt=(), language="en"):
    seconds = (3, 2, 0.5, 1.7)
    return [Job(tone(seconds[i], i), [*prompt], language, (f"f{i}", 0)) for i in range(n)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_windows_of_a_batch_are_those_of_each_alone(model, temperature):
    own = windows(model, beam=3, best_of=3)
    prompt = [own.vocabulary.first_time, 1, 2, 3]
    jobs = jobs_of(3) + [Job(tone(1, 9), prompt, "de", ("f9", 3))]
    together = own.decode(jobs, temperature)
    assert len({tuple(x.tokens) for x in together}) > 1
    for job, window in zip(jobs, together):
        (alone,) = own.decode([job], temperature)
        assert alone.tokens == window.tokens
        np.testing.assert_allclose(alone[1:3], window[1:3], rtol=1e-3)
        assert window.tokens[0] >= own.vocabulary.first_time
        assert 0 < window.no_speech < 1 and window.avg_logprob < 0


def test_the_mean_log_probability_is_that_of_the_model(model):
    """Of all tokens and the end, after the prompt and the start, by the rules."""
    decoder, variables, c, tokenizer = model
    own = windows(model, beam=2, best_of=2)
    prompt = [5, 6, 7]
    job = Job(tone(3), prompt, "zh", ("f", 0))
    before = [tokenizer.special["<|startofprev|>"], *prompt]
    before += tokenizer.start("zh", timestamps=True)
    rules = speech.rules_of(tokenizer, timestamps=True)
    log_p = jax.jit(lambda history, x: jax.nn.log_softmax(speech.apply(rules, history, x)))
    for temperature in (0.0, 0.5):
        (window,) = own.decode([job], temperature)
        ids = np.array([[*before, *window.tokens]])
        logits = logits_of(c, variables, job.audio, ids)[0]
        history, total = speech.History.empty(1), 0.0
        ended = len(window.tokens) < own._most
        for i, token in enumerate([*window.tokens, tokenizer.eos_id][: own._most]):
            at = logits[None, len(before) - 1 + i]
            total += float(log_p(history, at)[0, token])
            history = history.with_token(rules, np.array([token]))
        n = len(window.tokens) + (ended or temperature > 0)
        assert window.avg_logprob == pytest.approx(total / n, rel=1e-3)
        p = jax.nn.softmax(logits[before.index(c.start_id)])[tokenizer.no_speech_id]
        assert window.no_speech == pytest.approx(float(p), rel=1e-3)


def test_the_longest_prompt_leaves_room(model):
    """A text ends at max_len; that of another row of the batch does not."""
    own = windows(model, beam=1)
    assert own.max_prompt == 19 and own._most == 20
    long, short = jobs_of(1, prompt=range(19))[0], jobs_of(1)[0]
    together = own.decode([long, short], 0.0)
    assert len(together[0].tokens) <= 40 - (1 + 19 + 3)
    assert [x.tokens for x in together] == [own.decode([x], 0.0)[0].tokens for x in (long, short)]
    assert all(np.isfinite(x.avg_logprob) for x in together)


def test_samples_depend_on_the_seed(model):
    texts = [
        windows(model, best_of=1, seed=seed).decode(jobs_of(1), 1.0)[0].tokens for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_best_sample_is_the_most_likely_per_token(model):
    """Of a token, -0.5 and the end, -0.5; and of three tokens and the end, -0.45 each."""
    own = windows(model, best_of=2)
    end = own.vocabulary.end_id
    chunk = Chunk(
        np.array([[5, end, end, end], [6, 7, 8, end]]),
        np.array([[-0.5, -0.5, 0, 0], [-0.45] * 4], np.float32),
        np.array([[1, 0, 0, 0], [1, 1, 1, 0]]) > 0,
    )
    own._generator = types.SimpleNamespace(
        variables=own._generator.variables, advance=lambda rows, sampling, n: (rows, chunk)
    )
    (best,) = own.decode(jobs_of(1), 0.5)
    assert best.tokens == [6, 7, 8] and best.avg_logprob == pytest.approx(-0.45)


def test_the_first_time_is_at_most_the_limit(model):
    for seconds in (0.0, 0.04):
        own = windows(model, beam=1, max_initial_timestamp=seconds)
        first = [x.tokens[0] - own.vocabulary.first_time for x in own.decode(jobs_of(4), 0.0)]
        assert 0 <= min(first) <= max(first) <= round(seconds / 0.02)


def test_languages_by_the_start_token(model):
    own = windows(model)
    audio = [job.audio for job in jobs_of(3)]
    found = own.detect(audio)
    assert own.detects and {*found} <= {*CODES}
    decoder, variables, c, tokenizer = model
    for row, code in zip(audio, found):
        logits = logits_of(c, variables, row, np.array([[c.start_id]]))
        of = {k: float(logits[0, -1, i]) for k, i in tokenizer.languages.items()}
        assert max(of, key=of.get) == code
    assert not windows(model, language="de").detects


def test_other_models_and_options_are_refused(model, tmp_path):
    decoder, variables, c, tokenizer = model
    plain = bytes_lib.load(None)
    with pytest.raises(UserError, match="--language=en and --task=transcribe need a tokenizer"):
        windows((decoder, variables, c, plain), language="en")
    other = load(tmp_path, english=True, is_multilingual=False)
    with pytest.raises(UserError, match="is not the tokenizer's token before a text"):
        windows((decoder, variables, c, other))


# --- The command -------------------------------------------------------------------------------


def make_run(folder, tokenizer, **model):
    """A work folder with random weights."""
    c = config_lib.new_config()
    c.model = dict(name="whisper", vocab_size=tokenizer.vocab_size, **SIZES, **model)
    c.task = dict(name="transcribe")
    kind = dict(kind="bytes") if tokenizer.kind == "bytes" else dict(kind="whisper", path="/x")
    c.data = dict(name="audio", train="/nowhere", tokenizer=kind, seq_len=20)
    c.data.update(sample_rate=RATE, max_seconds=3.0)
    c = helpers.filled(c)
    variables = jax.jit(tasks.build(c).init)(jax.random.key(0))
    workdir_lib.write_config(folder, c)
    tokenizer.save(folder / "tokenizer")
    checkpoints = Checkpoints(folder)
    state = State(jnp.int32(3), variables["params"], (), {}, {}, jnp.bool_(False))
    checkpoints.save(3, state, {"data": "", "early_stop": {}}, {})
    checkpoints.wait()
    checkpoints.close()
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    start = model[3].special["<|startoftranscript|>"]
    return make_run(tmp_path_factory.mktemp("run"), model[3], start_id=start)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("plain"), bytes_lib.load(None), start_id=256)


FAST = ("--beam=1", "--logprob=-inf", "--compression_ratio=inf")


def command(capsys, run, *argv):
    """(exit code, lines on standard output, standard error)."""
    code = main.main(["transcribe", f"--workdir={run}", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_bad_files_are_skipped_and_a_second_call_does_the_rest(run, tmp_path, capsys):
    calls, out = tmp_path / "calls", tmp_path / "out"
    write(calls / "long.wav", tone(7.5), RATE)
    write(calls / "eight.flac", np.stack([tone(2, i) for i in range(8)], 1), 8000)
    write(calls / "silent.wav", np.zeros(5 * RATE, np.int16), RATE)
    write(calls / "empty.wav", np.zeros(0, np.int16), RATE)
    (calls / "cut.wav").write_bytes(content(tone(9), RATE)[:-5000])
    (calls / "odd.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(50))
    (calls / "notes.wav").write_text("no recording")
    argv = (
        calls,
        tmp_path / "none.wav",
        *FAST,
        f"--output={out}",
        "--format=json,srt",
        "--batch=2",
    )
    code, lines, err = command(capsys, run, *argv)
    assert code == 1 and not lines
    last = f"bigjax: 5 of 8 recordings could not be transcribed; {out}/failures.tsv says why."
    assert err.splitlines()[-1] == last
    failures = dict(x.split("\t") for x in (out / "failures.tsv").read_text().splitlines())
    bad = ["cut.wav", "empty.wav", "none.wav", "notes.wav", "odd.m4a"]
    assert sorted(x.rpartition("/")[2] for x in failures) == bad
    for file, reason in failures.items():
        assert f"note: not transcribed: {reason}\n" in err and file in reason
    assert f"note: {calls}/silent.wav: all of its samples are 0; it has no text." in err
    kept = {p.name for p in out.iterdir()}
    own = {f"{x}.{form}" for x in ("long", "eight", "silent") for form in ("json", "srt")}
    assert kept == own | {"failures.tsv", "recordings.jsonl"}

    long = json.loads((out / "long.json").read_text())
    assert long["file"] == f"{calls}/long.wav" and long["duration"] == 7.5
    assert long["language"] in CODES
    segments = long["segments"]
    assert "".join(s["text"] for s in segments).strip() == long["text"]
    assert max(s["end"] for s in segments) > 3  # of a later window
    assert all(s["start"] < s["end"] and 0 < s["no_speech_prob"] < 1 for s in segments)
    silent = json.loads((out / "silent.json").read_text())
    assert silent["segments"] == [] and silent["language"] is None and silent["duration"] == 5

    for name in ("cut", "empty", "notes"):
        write(calls / f"{name}.wav", tone(1), RATE)
    (calls / "odd.m4a").unlink()
    (out / "eight.srt").unlink()
    before = (out / "long.srt").stat().st_mtime_ns
    code, lines, err = command(capsys, run, *argv[:1], *argv[2:])
    assert code == 0 and "2 of 6 recordings have their files" in err
    assert f"Wrote {out}: 4 recordings" in err.splitlines()[-1]
    kept = (out / "failures.tsv").read_text().splitlines()  # of files that this one does not name
    assert [x.partition("\t")[0].rpartition("/")[2] for x in kept] == ["odd.m4a", "none.wav"]
    assert (out / "cut.srt").exists()
    assert (out / "eight.srt").exists() and (out / "long.srt").stat().st_mtime_ns == before
    code, lines, err = command(capsys, run, *argv[:1], *argv[2:])
    assert code == 0 and err.count("\n") == 1 and "6 of 6 recordings have their files" in err
    code, lines, err = command(capsys, run, calls / "long.wav", *argv[2:], "--redo")
    assert code == 0 and (out / "long.srt").stat().st_mtime_ns > before
    again = json.loads((out / "long.json").read_text())["segments"]  # in a batch of another size
    assert [s["tokens"] for s in again] == [s["tokens"] for s in segments]


@pytest.mark.parametrize("redo", [[], ["--redo"]])
def test_an_interruption_says_how_to_go_on(redo, run, tmp_path, capsys, monkeypatch):
    for name in "ab":
        write(tmp_path / f"{name}.wav", tone(1), RATE)
    written = transcripts.Folder.write

    def write_one(folder, transcript):
        written(folder, transcript)
        raise process.Interrupted(signal.SIGINT)

    monkeypatch.setattr(transcripts.Folder, "write", write_one)
    argv = (tmp_path / "a.wav", tmp_path / "b.wav", *FAST, f"--output={tmp_path / 'out'}", *redo)
    if redo:  # files of an earlier command do not count
        (tmp_path / "out").mkdir()
        for name in "ab":
            (tmp_path / "out" / f"{name}.txt").touch()
    code, _, err = command(capsys, run, *argv)
    assert code == 130
    how = "starts again, since it has --redo" if redo else "transcribes the others"
    what = "new" if redo else "their"
    assert (
        f"1 of 2 recordings have {what} files in {tmp_path / 'out'}: the same command {how}.\n"
        in err
    )


def test_lines_on_the_terminal_and_flags_after_files(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a[1].wav", tone(4), RATE)
    write(tmp_path / "b.wav", tone(1), RATE)
    code, lines, err = command(capsys, run, "*.wav", "b.wav", "--language=de", *FAST)
    assert code == 0 and "2 recordings, 0.00 hours of audio, step 3" in err
    assert {x.partition(": [")[0] for x in lines} <= {"a[1].wav", "b.wav"} and lines
    assert all(x.partition(": ")[2].startswith("[00:0") for x in lines)
    code, _, err = command(capsys, run, "b.wav", "none.wav", "--language=de", *FAST)
    assert code == 1 and "1 of 2 recordings could not be transcribed; the notes above" in err


def test_a_model_without_times(plain_run, tmp_path, capsys):
    """Windows of max_seconds; the command's fallback too."""
    write(tmp_path / "a.wav", tone(7), RATE)
    argv = (tmp_path / "a.wav", f"--output={tmp_path}/out", "--format=txt,json", "--best_of=2")
    code, _, err = command(capsys, plain_run, *argv, "--temperatures=0,1")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert {(s["start"], s["end"]) for s in found["segments"]} <= {(0, 3), (3, 6), (6, 7)}
    assert len(found["segments"]) > 1 and found["language"] is None
    assert {s["temperature"] for s in found["segments"]} == {1}
    assert found["segments"][0]["no_speech_prob"] is None
    text = (tmp_path / "out" / "a.txt").read_text()
    assert text == " ".join(found["text"].split()) + "\n"


def test_recordings_for_a_model_of_other_data(tmp_path):
    """A config whose `data` has no columns of audio."""
    path = write(tmp_path / "a.wav", tone(1), RATE)
    (tmp_path / "list.tsv").write_text("audio\na.wav\n")
    c = config_lib.new_config()
    assert c.data.name != "audio"
    assert transcribe_cli.recordings_of([path], c) == ([path], [])
    assert transcribe_cli.recordings_of([f"{tmp_path}/list.tsv"], c) == ([path], [])


def test_missing_files_do_not_end_the_others(run, tmp_path, capsys, monkeypatch):
    """Of patterns, links and tables; without any other it is refused before the model is read."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.wav", tone(1), RATE)
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "list.tsv").write_text("audio\na.wav\ngone.wav\n")
    for i, (argv, n, words) in enumerate(
        (
            (["a.wav", "no*.wav"], 2, "FILE='no*.wav': no file (looked from"),
            (["*.wav"], 2, "link.wav: No such file or directory."),
            (["list.tsv"], 2, "gone.wav: No such file or directory."),
        )
    ):
        code, lines, err = command(capsys, run, *argv, "--language=de", f"--output=o{i}", *FAST)
        assert code == 1 and f"note: not transcribed: {words}" in err, err
        assert f"1 of {n} recordings could not be transcribed; " in err
        assert (tmp_path / f"o{i}" / "a.txt").exists()
    (tmp_path / "a.wav").unlink()
    code, _, err = command(capsys, run, "list.tsv")
    assert code == 2 and "None of the 2 files that list.tsv names exists, such as a.wav" in err
    code, _, err = command(capsys, run, "no*.wav", "nowhere.wav")
    assert code == 2 and "'no*.wav': no such file or folder" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "transcribe needs recordings"),
        ([""], "A FILE is empty"),
        (["nowhere.wav"], "'nowhere.wav': no such file or folder"),
        (["nothing/*.wav"], "FILE='nothing/*.wav': no file"),
        (["a.wav", "--format=srt"], "--format is only for --output"),
        (["a.wav", "--redo"], "--redo is only for --output"),
        (["a.wav", "--output=x", "--format=srt,doc"], "'doc' is not a format"),
        (["a.wav", "--batch=0"], "--batch is 0"),
        (["a.wav", "--temperatures=0;1"], "--temperatures is '0;1'"),
        (["a.wav", "--best_of=0"], "--best_of is 0"),
        (["a.wav", "--language=german"], "languages are de, en"),
        (["a.wav", "--betch=0"], "Did you mean --batch? Flags of this command: "),
        (["a.wav", "ftp://x/a.wav"], "FILE is 'ftp://x/a.wav', with the unsupported scheme"),
    ],
)
def test_what_is_refused(run, argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines, err = command(capsys, run, *argv)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_options_that_a_model_lacks(plain_run, tmp_path, capsys):
    for flag in ("--language=en", "--task=translate", "--timestamps"):
        code, _, err = command(capsys, plain_run, "a.wav", flag)
        assert code == 2 and flag.partition("=")[0] in err, err


def test_other_commands_refuse_what_is_no_flag(capsys):
    assert main.main(["report", "--workdir=/x", "a.wav"]) == 2
    assert "'a.wav' is not a flag: write arguments as --NAME=VALUE" in capsys.readouterr().err
    assert "FILE ..." in transcribe_cli.COMMAND.usage()
    assert "--[no]timestamps " in transcribe_cli.COMMAND.usage()
    parsed = arguments.Arguments(["~/a.wav", "--beam=2", "--", "-b.wav"], transcribe_cli.COMMAND)
    assert parsed.positional[1] == "-b.wav" and "~" not in parsed.positional[0]
    assert parsed.flags.beam == 2
