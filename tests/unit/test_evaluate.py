"""Log-likelihoods of continuations, tasks run with a model, and the command `bigjax evaluate`."""

import json
import pathlib
import types

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax.arguments import Arguments
from bigjax.cli import evaluate as cli
from bigjax.data import chat_template
from bigjax.data.tokenizers import tokenizer_json
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.evals.harness import run as harness
from bigjax.evals.harness import task_file
from bigjax.infer import likelihood
from bigjax.infer.generate import Generator, Options
from bigjax.infer.likelihood import Pair, Scorer
from bigjax.layers import params
from bigjax.models import gpt
from bigjax.parallel import mesh as mesh_lib
from tests import chats, published_tokenizers
from tests.decoders import continuing_decoder
from tests.tiny import get_config

BOS = Bytes().bos_id


def make_mesh(n):
    config = config_lib.new_config().mesh
    with config.unlocked():
        config.data = n
    return mesh_lib.make_mesh(config, jax.devices()[:n])


# --- Token ids -----------------------------------------------------------------------------------


def test_white_space_before_a_continuation_belongs_to_it():
    ids = lambda text: [*text.encode()]
    given = [(["ab \n"], "c"), (["ab"], " c"), ([""], "c"), ([], "c"), (["  "], "c")]
    assert likelihood.pairs(Bytes(), given) == [
        Pair([BOS, *ids("ab")], ids(" \nc")),
        Pair([BOS, *ids("ab")], ids(" c")),
        Pair([BOS], ids("c")),
        Pair([BOS], ids("c")),
        Pair([BOS], ids("  c")),
    ]
    assert likelihood.prompts(Bytes(), [["ab "], []]) == [[BOS, *ids("ab ")], [BOS]]


def test_context_and_continuation_are_encoded_together(tmp_path):
    """With tokens that cross the boundary, and a tokenizer without a bos."""
    tokenizer = tokenizer_json.load(published_tokenizers.write("qwen", tmp_path))
    assert tokenizer.leading_ids == ()
    whole = tokenizer.encode("The quick").tolist()
    (pair,) = likelihood.pairs(tokenizer, [(["The"], " quick")])
    assert pair.context + pair.continuation == whole and tokenizer.decode(pair.context) == "The"
    (pair,) = likelihood.pairs(tokenizer, [(["The qu"], "ick")])
    assert pair.context + pair.continuation == whole and pair.continuation
    assert likelihood.pairs(tokenizer, [([""], "The")])[0].context == [tokenizer.bos_id]
    end = tokenizer.special["<|im_end|>"]
    (pair,) = likelihood.pairs(tokenizer, [(["The", end, "\n"], "fox")])
    assert pair.context == [*tokenizer.encode("The"), end]
    assert tokenizer.decode(pair.continuation) == "\nfox"


@pytest.mark.parametrize("n", [0, 1, 5, 6, 10, 11, 17])
def test_rolling_windows_have_each_token_once(n):
    text = "abcdefghijklmnopqrstuvwxyz"[:n]
    windows = likelihood.rolling(Bytes(), text, 5)
    assert sum((w.continuation for w in windows), []) == [*text.encode()]
    for i, window in enumerate(windows):
        length = len(window.context) + len(window.continuation)
        assert length == (6 if i else min(n, 5) + 1)
    if windows:
        assert windows[0].context == [BOS]
    if n == 11:
        assert bytes(windows[2].context) == b"fghij" and bytes(windows[2].continuation) == b"k"


# --- The model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """(variables, decoder) of a small GPT of random weights, for 24 tokens."""
    sizes = dict(vocab_size=264, d_model=16, n_layers=2, n_heads=2, position="rotary")
    c = gpt.Config(max_len=24, **sizes)
    variables = jax.jit(gpt.Model(c).init)(jax.random.key(0), np.zeros((1, 4), np.int32))
    variables = jax.tree_util.tree_map(lambda x: 3 * x, params.unbox(variables))
    return jax.device_get(params.unrolled(variables)), gpt.decoder(c)


@pytest.fixture(scope="module")
def log_probs(model):
    """row -> float32 [n, V]: of each of the n tokens of its continuation."""
    variables, decoder = model
    logits_of = jax.jit(lambda tokens: decoder.score(variables, tokens).product()[0])

    def log_probs(row):
        inputs = [*row.context, *row.continuation][-25:-1]
        padded = np.array([inputs + [7] * (24 - len(inputs))], np.int32)
        end = len(inputs)
        return jax.nn.log_softmax(np.asarray(logits_of(padded)))[end - len(row.continuation) : end]

    return log_probs


def rows_of(n=9):
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (3, 2), (20, 4), (21, 4), (40, 3), (2, 24), (1, 23), (5, 5), (4, 9)][:n]
    return [Pair(*(rng.integers(0, 256, size).tolist() for size in pair)) for pair in sizes]


@pytest.mark.parametrize("devices, batch_size", [(1, 4), (8, 3)])
def test_log_likelihoods_are_those_of_each_row_by_itself(model, log_probs, devices, batch_size):
    """Whatever the batch, the padding and the devices; too long rows lose their beginning."""
    rows, mesh = rows_of(), make_mesh(devices)
    with jax.set_mesh(mesh):
        scorer = Scorer(Generator(model[1], model[0]), mesh, batch_size)
        counts: list[int] = []
        found = scorer(rows, ["row"] * len(rows), counts.append)
    assert [scorer.is_truncated(row) for row in rows] == [False] * 4 + [True, True] + [False] * 3
    assert sum(counts) == len(rows)
    for row, one in zip(rows, found):
        log_p, ids = np.asarray(log_probs(row)), np.array(row.continuation)
        want = log_p[np.arange(len(ids)), ids].sum()
        assert one.log_p == pytest.approx(float(want), abs=2e-4)
        assert one.greedy == bool((log_p.argmax(-1) == ids).all())


def test_what_the_model_would_say_is_greedy(model):
    generator, context = Generator(model[1], model[0]), [1, 2, 3]
    (answer,) = generator([context], Options(4, temperature=0))
    other = [*answer[:3], (answer[3] + 1) % 256]
    rows = [Pair(context, answer), Pair(context, other)]
    assert [x.greedy for x in Scorer(generator, make_mesh(1), 4)(rows, "ab")] == [True, False]


def test_what_cannot_be_scored_is_refused(model):
    (variables, decoder), mesh = model, make_mesh(1)
    scorer = Scorer(Generator(decoder, variables), mesh, 4)
    with pytest.raises(UserError, match="b.jsonl:2: a continuation has 25 tokens; at most 24"):
        scorer([Pair([1], [1]), Pair([1], [1] * 25)], ["b.jsonl:1", "b.jsonl:2"])
    nan = jax.tree_util.tree_map(lambda x: x * np.nan, variables)
    with pytest.raises(UserError, match="b.jsonl:1: the model's log-likelihood is nan"):
        Scorer(Generator(decoder, nan), mesh, 4)([Pair([1], [1])], ["b.jsonl:1"])
    with pytest.raises(UserError, match="needs a decoder with `score`"):
        Scorer(Generator(decoder._replace(score=None), variables), mesh, 4)


# --- Tasks with a model --------------------------------------------------------------------------

# The decoder of these tests repeats the last letter: of other letters the log-probability is -20.
ROWS = [
    {"q": "xa", "choices": ["aa", "b"], "label": 0},
    {"q": "xb", "choices": ["aa", "bbbb"], "label": 0},
    {"q": "xc", "choices": ["!", "cd", "ccc"], "label": 1},
]
CHOICES = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "rows.jsonl"},
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
}
GENERATE = {**CHOICES, "output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}


@pytest.fixture
def task(tmp_path):
    def make(keys=(), rows=ROWS, name="task.json"):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name).write_text(json.dumps({**CHOICES, **dict(keys)}))
        return task_file.read(str(tmp_path / name))

    return make


def fake(max_len=64, template=None, batch_size=2):
    generator = Generator(continuing_decoder(max_len), 20.0)
    scorer = Scorer(generator, make_mesh(1), batch_size)
    return harness.Model(generator, scorer, Bytes(), batch_size, template)


def run(task, limit=None, few=None, log=print, **more):
    prepared = harness.prepare(task, limit, few, log)
    return prepared, harness.run(prepared, fake(**more), log)


def test_choices(task):
    prepared, outcome = run(task({"task_alias": "My task", "metadata": {"version": 2}}))
    assert outcome.results["acc,none"] == pytest.approx(1 / 3)
    assert outcome.results["acc_stderr,none"] == pytest.approx(1 / 3)
    log_ps = [[x for x, _ in sample["filtered_resps"]] for sample in outcome.samples]
    assert log_ps[0][0] == pytest.approx(0, abs=1e-5) and log_ps[0][1] == pytest.approx(-20)
    assert log_ps[2] == [pytest.approx(-70), pytest.approx(-20), pytest.approx(0, abs=1e-5)]
    first = outcome.samples[0]
    assert first["arguments"]["gen_args_1"] == {"arg_0": "xa", "arg_1": "b"}
    assert (first["target"], first["doc"], first["acc"]) == (0, ROWS[0], 1)
    assert [s["filtered_resps"][0][1] for s in outcome.samples] == [True, False, False]
    report = harness.report([prepared], [outcome])
    assert report["results"]["mine"]["alias"] == "My task"
    assert report["n-samples"] == {"mine": {"original": 3, "effective": 3}}
    assert report["higher_is_better"] == {"mine": {"acc": True, "acc_norm": True}}
    assert report["versions"] == {"mine": 2} and report["n-shot"] == {"mine": 0}
    line = harness.table([prepared], [outcome]).splitlines()[2]
    assert [x.strip() for x in line.split("|")[1:8]] == [
        "My task",
        "2",
        "none",
        "0",
        "acc",
        "↑",
        "0.3333",
    ]


def test_limit_examples_and_truncation(task):
    lines = []
    prepared, outcome = run(task(), limit=2, few=1, log=lines.append, max_len=8)
    assert (prepared.num_fewshot, len(outcome.samples)) == (1, 2)
    context = outcome.samples[0]["arguments"]["gen_args_0"]["arg_0"]
    assert context.endswith("\n\nxa") and context != "xa"
    assert "of 4 requests are longer than model.max_len=8" in lines[0] and len(lines) == 1
    assert outcome.samples[0]["filtered_resps"][0][0] == pytest.approx(0, abs=1e-5)
    _, outcome = run(task(), limit=1, few=1)  # examples are of all rows
    assert len(outcome.samples) == 1
    prepared, _ = run(task({"num_fewshot": 0}), few=1, log=lines.append)
    assert prepared.num_fewshot == 0 and "evaluated without examples" in lines[-1]


def test_log_likelihoods_and_rolling(task):
    keys = {"output_type": "loglikelihood", "doc_to_target": "{{choices[-1]}}"}
    _, outcome = run(task({**keys, "target_delimiter": "?"}))  # which has no effect on it
    assert [s["perplexity"] for s in outcome.samples] == [
        pytest.approx(-20),
        pytest.approx(0, abs=1e-5),
        pytest.approx(0, abs=1e-5),
    ]
    assert outcome.results["acc,none"] == pytest.approx(2 / 3)
    assert outcome.results["perplexity,none"] == pytest.approx(np.exp(20 / 3), rel=1e-5)
    keys = {"output_type": "loglikelihood_rolling", "doc_to_target": "a{{q}} bb", "doc_to_text": ""}
    _, outcome = run(task(keys, ROWS[:1]), max_len=4)
    # a after bos: log(1/26); x, a: -20; a space: -70; b after it: log(1/26); b: 0
    log_p = outcome.samples[0]["filtered_resps"][0]
    assert log_p == pytest.approx(2 * -np.log(26) - 40 - 50 - 20, abs=1e-3)
    assert outcome.results["byte_perplexity,none"] == pytest.approx(np.exp(-log_p / 6))


def test_generation_stops_and_is_filtered(task):
    keys = {
        **GENERATE,
        "generation_kwargs": {"until": ["bbb", "!"], "max_gen_toks": 5},
        "filter_list": [
            {"name": "two", "filter": [
                {"function": "regex", "regex_pattern": "^(..)"}, {"function": "take_first"},
            ]},
            {"name": "all", "filter": [{"function": "take_first"}]},
        ],
    }  # fmt: skip
    _, outcome = run(task(keys))
    answers = {(s["doc_id"], s["filter"]): s["filtered_resps"][0] for s in outcome.samples}
    assert answers[0, "all"] == "aaaaa" and answers[0, "two"] == "aa"
    assert answers[1, "all"] == "" and answers[1, "two"] == "[invalid]"
    settings = {"until": ["bbb", "!"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}
    assert outcome.samples[0]["arguments"]["gen_args_0"] == {"arg_0": "xa", "arg_1": settings}
    assert outcome.results["exact_match,two"] == pytest.approx(1 / 3)
    assert outcome.results["exact_match,all"] == 0


def test_repeats_are_drawn_apart(task):
    """With the variable 0 letters are drawn at random."""
    keys = {**GENERATE, "repeats": 3, "generation_kwargs": {"temperature": 1.0, "max_gen_toks": 6}}
    prepared = harness.prepare(task(keys), None, None)
    outcomes = []
    for batch_size in (2, 4):
        generator = Generator(continuing_decoder(64), 0.0)
        scorer = Scorer(generator, make_mesh(1), 2)
        model = harness.Model(generator, scorer, Bytes(), batch_size)
        outcomes.append(harness.run(prepared, model).samples)
    answers = [sample["resps"][0] for sample in outcomes[0]]
    assert all(len({*own}) == 3 for own in answers) and answers[0] != answers[1]
    assert outcomes[0] == outcomes[1]


def test_prompts_that_are_too_long_lose_their_beginning(task):
    lines = []
    rows = [{**ROWS[0], "q": "x" * 20 + "a"}, ROWS[1]]
    keys = {**GENERATE, "generation_kwargs": {"max_gen_toks": 5}}
    _, outcome = run(task(keys, rows), max_len=16, log=lines.append)
    assert outcome.samples[0]["resps"] == [["aaaaa"]]
    assert lines == [
        "note: mine: 1 of 2 prompts have more than 11 tokens, which model.max_len=16 leaves beside "
        "5 new ones, and lose their beginning"
    ]
    with pytest.raises(UserError, match="max_gen_toks is 16, but with model.max_len=16 at most 15"):
        run(task({**GENERATE, "generation_kwargs": {"max_gen_toks": 16}}), max_len=16)


def test_chats(task):
    """The context is the user's turn; the answer begins as the template writes an answer."""
    template = chat_template.read("plain", Bytes())
    assert template.before_answer == " "
    keys = {"description": "Be brief.", "target_delimiter": "?"}
    prepared, outcome = run(task(keys), template=template, max_len=128)
    model = fake(template=template)
    assert harness.contexts(prepared, model)[0] == ["System: Be brief.\nUser: xa\nAssistant:"]
    arguments = outcome.samples[0]["arguments"]["gen_args_0"]
    assert arguments == {"arg_0": "System: Be brief.\nUser: xa\nAssistant:", "arg_1": " aa"}
    with_system = model._replace(system="S")
    text = harness.contexts(prepared, with_system)[0][0]
    assert text.startswith("System: S\n\nBe brief.\nUser: xa\n")
    assert chat_template.ChatTemplate(chats.GEMMA, Bytes()).before_answer == ""


# --- The command ---------------------------------------------------------------------------------


def command(monkeypatch, *flags, max_len=64):
    decoder = continuing_decoder(max_len)
    family = types.SimpleNamespace(decoder=lambda c: decoder)
    config = get_config()
    loaded = types.SimpleNamespace(step=3, fingerprint="f" * 16, mesh=make_mesh(1))
    monkeypatch.setattr("bigjax.modules.of", lambda config, section: family)
    monkeypatch.setattr("bigjax.data.load_tokenizer", lambda folder, python_path: Bytes())
    monkeypatch.setattr("bigjax.train.workdir.existing", pathlib.Path)
    monkeypatch.setattr("bigjax.train.load.load", lambda *_, **__: loaded)
    monkeypatch.setattr("bigjax.train.load.decoder_of", lambda *_: (decoder, 20.0))
    f = Arguments([*flags], cli.COMMAND).flags
    config = ConfigDict(dict(model=dict(name="m"), data=config.data, task={}, python_path=""))
    cli.run(
        types.SimpleNamespace(
            flags=f, workdir="run", step=None, overrides=[], config_of_run=lambda: config
        )
    )


def test_the_files_of_the_command(monkeypatch, task, tmp_path, capsys):
    task(), task({**GENERATE, "task": "other"}, name="other.json")
    flags = [f"--tasks={tmp_path / 'task.json'}", f"--tasks={tmp_path / 'other.json'}"]
    flags += [f"--output={tmp_path / 'out.json'}", f"--samples={tmp_path / 'out.jsonl'}"]
    command(monkeypatch, *flags, "--limit=2")
    out = capsys.readouterr().out
    assert "run, step 3\n" in out and "|other" in out and "4 documents" in out
    report = json.loads((tmp_path / "out.json").read_text())
    assert {*report["results"]} == {"mine", "other"}
    assert report["config"]["model_fingerprint"] == "f" * 16 and report["config"]["limit"] == 2
    samples = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(s["task"], s["doc_id"]) for s in samples] == [
        ("mine", 0), ("mine", 1), ("other", 0), ("other", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "Give --tasks=FILE"),
        (["--tasks=/nowhere.json"], "cannot read /nowhere.json"),
        (["--tasks=t.json", "--limit=-1"], "--limit is -1"),
        (["--tasks=t.json", "--batch_size=0"], "--batch_size is 0"),
        (["--tasks=t.json", "--num_fewshot=-2"], "--num_fewshot is -2"),
        (["--tasks=t.json", "--output=/nowhere/a.json"], "results file .* cannot be written"),
        (["--tasks=t.json", "--output=a.jsonl"], "must end in one of .json"),
        (["--tasks=t.json", "--samples=a.json"], "must end in one of .jsonl"),
        (["--tasks=t.json", "--chat"], "data.chat_template is empty and .* Or leave --chat out"),
    ],
)
def test_invalid_flags_are_refused(monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        command(monkeypatch, *flags)


def test_a_chat_of_rolling_is_refused(monkeypatch, task, tmp_path):
    task({"output_type": "loglikelihood_rolling", "doc_to_target": "q"})
    template = chat_template.read("plain", Bytes())
    monkeypatch.setattr("bigjax.data.chat_template.read", lambda *_, **__: template)
    with pytest.raises(UserError, match="has no context, so --chat has no effect"):
        command(monkeypatch, f"--tasks={tmp_path / 'task.json'}", "--chat")
