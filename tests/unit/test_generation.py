"""Generation for whole files and for evaluation, with a decoder that copies its source."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax import tasks
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.evals import generation
from bigjax.infer import batch, files, texts
from bigjax.infer.batch import Search
from bigjax.infer.generate import Generator, Options
from bigjax.parallel import mesh as mesh_lib
from tests.decoders import V, copying_decoder

END = 257


def ids_of(*sources: str) -> list[list[int]]:
    return texts.prompt_ids(Bytes(), sources, copying_decoder())


SOURCES = ("ab", "a longer one", "c", "the fourth")


@pytest.mark.parametrize("width", [1, 3])
def test_search_of_sources_of_unequal_length(width):
    found = batch.search(
        copying_decoder(), 20.0, ids_of(*SOURCES), 20, Search(width), end_id=END, pad_id=258
    )
    assert [Bytes().decode(row[0].ids) for row in found] == [*SOURCES]
    assert all(len(row) == 1 and -0.01 < row[0].score <= 0 for row in found)


def test_a_sampled_and_a_greedy_answer():
    generator = Generator(copying_decoder(), 20.0)
    options = Options(20, 0.0, eos_id=END)
    assert texts.texts(generator, Bytes(), SOURCES, options) == [*SOURCES]


def test_batches_are_of_similar_lengths_the_longest_first():
    assert batch.by_length([3, 9, 1, 9, 4], 2) == [[1, 3], [4, 0], [2]]


def test_a_coverage_penalty_prefers_texts_that_use_the_whole_source():
    """Two texts are as likely: the end token at once, or after the whole source."""
    decoder = copying_decoder()

    def step(sure, state, tokens):
        logits, new = decoder.step(sure, state, tokens)
        first = (state[0] == 0)[:, None]
        return jnp.where(first, logits.at[:, END].set(sure), logits), new

    both = decoder._replace(step=step)
    given = dict(end_id=END, pad_id=258)
    options = dict(length_penalty=0.0)
    short = batch.search(both, 30.0, ids_of("abc"), 9, Search(2, 2, **options), **given)[0]
    assert {len(t.ids) for t in short} == {0, 3}
    assert short[0].score == pytest.approx(short[1].score, abs=1e-4)
    best = batch.search(both, 30.0, ids_of("abc"), 9, Search(2, 1, 0.0, 0.2), **given)[0]
    assert Bytes().decode(best[0].ids) == "abc"
    plain = decoder._replace(attention=None)
    with pytest.raises(UserError, match="no attention to a source"):
        batch.search(plain, 30.0, ids_of("abc"), 9, Search(2, 1, 0.0, 0.2), **given)


def test_a_search_without_a_text_is_refused_with_its_input():
    """Such as of a model that diverged."""
    nan = float("nan")
    given = dict(end_id=END, pad_id=258)
    with pytest.raises(UserError, match="input 1: no text was found: .* logits are not finite"):
        batch.search(copying_decoder(), nan, ids_of("ab", "c"), 5, Search(2, 2), **given)
    with pytest.raises(UserError, match="f.tsv:2: no text was found"):
        batch.search(copying_decoder(), nan, ids_of("ab"), 5, Search(1), names=["f.tsv:2"], **given)


def test_texts_that_a_search_did_not_find_are_left_out():
    decoder = copying_decoder()
    two = lambda logits: jnp.where(jnp.arange(V) < 2, logits, -jnp.inf)  # tokens

    def step(sure, state, tokens):
        logits, new = decoder.step(sure, state, tokens)
        return two(logits), new

    (row,) = batch.search(
        decoder._replace(step=step), 1.0, ids_of("ab"), 1, Search(3, 3), end_id=END, pad_id=258
    )
    assert sorted(text.ids for text in row) == [[0], [1]]


def test_more_texts_than_beams_are_refused():
    with pytest.raises(UserError, match="n_best is 3, but a search with 2 beams"):
        Search(2, 3)


# --- Whole files -----------------------------------------------------------------------------


def counting(inputs, fail_at=None):
    """(generate, calls): the text of an input is its length."""
    calls = []

    def generate(indices):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(indices)
        return [[(str(len(inputs[i])), float(i))] for i in indices]

    return generate, calls


def test_results_are_in_the_order_of_the_inputs(tmp_path):
    inputs = [[0] * n for n in (3, 9, 1, 7, 4)]
    generate, calls = counting(inputs)
    found = files.generate_all(inputs, generate, 2)
    assert found == [[(str(len(x)), float(i))] for i, x in enumerate(inputs)]
    assert calls == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize("seconds", [0.0, 1e9])  # results are kept at once, or at Ctrl-C
def test_an_ended_call_goes_on_with_the_rest(seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SAVE_SECONDS", seconds)
    inputs, output = [[0] * n for n in (3, 9, 1, 7, 4)], str(tmp_path / "out.jsonl")
    generate, calls = counting(inputs, fail_at=2)
    lines = []
    with pytest.raises(KeyboardInterrupt):
        files.generate_all(inputs, generate, 2, output, ["step 1"], lines.append)
    assert len(calls) == 2
    assert lines == [f"4 of 5 are in {output}.partial: the same command resumes."]
    generate, calls = counting(inputs)
    lines = []
    found = files.generate_all(inputs, generate, 2, output, ["step 1"], lines.append)
    assert calls == [[2]] and [len(x) for x in inputs] == [int(row[0][0]) for row in found]
    assert "4 of 5" in lines[0]
    files.forget(output)
    assert [*tmp_path.iterdir()] == []


def test_results_before_an_error_are_kept(tmp_path):
    inputs, output = [[0] * n for n in (3, 9, 1)], str(tmp_path / "out.jsonl")
    generate, calls = counting(inputs)

    def fail(indices):
        if calls:
            raise UserError("no text was found")
        return generate(indices)

    with pytest.raises(UserError, match="no text"):
        files.generate_all(inputs, fail, 2, output)
    generate, calls = counting(inputs)
    files.generate_all(inputs, generate, 2, output)
    assert calls == [[2]]


@pytest.mark.parametrize("change", ["settings", "inputs", "batch"])
def test_results_for_something_else_are_not_used(change, tmp_path):
    inputs, output = [[0] * n for n in (3, 9, 1)], str(tmp_path / "out.jsonl")
    files.generate_all(inputs, counting(inputs)[0], 2, output, ["step 1"])
    if change == "inputs":
        inputs = [[1] * 3, *inputs[1:]]
    generate, calls = counting(inputs)
    lines = []
    size, step = (3 if change == "batch" else 2), (2 if change == "settings" else 1)
    files.generate_all(inputs, generate, size, output, [f"step {step}"], lines.append)
    assert len(calls) == (1 if change == "batch" else 2)
    assert "another model, or for other inputs or settings" in lines[0]
    if change == "settings":  # those of before are still there
        generate, calls = counting(inputs)
        files.generate_all(inputs, generate, 2, output, ["step 1"], lines.append)
        assert not calls
    files.forget(output)
    assert [*tmp_path.iterdir()] == []


def test_damaged_results_are_refused(tmp_path):
    inputs, output = [[0], [1, 2]], str(tmp_path / "out.jsonl")
    files.generate_all(inputs, counting(inputs)[0], 2, output)
    (file,) = (tmp_path / "out.jsonl.partial").iterdir()
    file.write_text("{")
    with pytest.raises(UserError, match=r"cannot be read .*Remove .*out.jsonl.partial"):
        files.generate_all(inputs, counting(inputs)[0], 2, output)


# --- Evaluation ------------------------------------------------------------------------------


def test_evaluation_by_generation(tmp_path, monkeypatch):
    decoder = copying_decoder()
    family = types.SimpleNamespace(decoder=lambda c: decoder)
    monkeypatch.setattr(generation.modules, "of", lambda config, section: family)
    monkeypatch.setattr(generation.params_lib, "unrolled", lambda x: x["params"])
    targets = ["ab", "a longer one", "d", "the forth"]
    rows = [
        {"source": s, "target": t, "where": f"f:{i}"}
        for i, (s, t) in enumerate(zip(SOURCES, targets))
    ]
    corpus = types.SimpleNamespace(
        inputs=lambda split: ids_of(*SOURCES),
        rows=lambda split: rows,
        references=lambda split: targets,
        tokenizer=Bytes(),
    )
    mesh = mesh_lib.make_mesh(dict(data=2), jax.devices()[:2])
    reports, logged = [], []
    context = types.SimpleNamespace(
        log=logged.append,
        config=ConfigDict(dict(train=dict(batch_size=2), data=dict(target_len=16, seq_len=20))),
        corpus=corpus,
        task=tasks.Task(
            init=None, axes={}, loss=None, load_data=None, batch_shapes=None, model_config=None
        ),
        frozen={},
        mesh=mesh,
        report=reports.append,
        write=lambda name, write: write(tmp_path) or "",
    )
    metrics = ("exact_match", "cer", "rouge")
    with jax.set_mesh(mesh):
        evaluate = generation.build("gen", generation.Config(metrics=metrics, worst=1), context)
        got = evaluate(jnp.float32(20.0), {}, 7)
    assert got["exact_match"] == 0.5 and got["cer"] == pytest.approx(2 / 24)
    assert set(got) == {*evaluate.metrics} == {"exact_match", "cer", "rouge1", "rouge2", "rougeL"}
    lines = [json.loads(x) for x in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [x["generated"] for x in lines] == [*SOURCES] and lines[2]["cer"] == 1.0
    worst = (tmp_path / "worst.txt").read_text()
    assert "f:2: character error rate 1.000" in worst and "f:3" not in worst
    assert json.loads((tmp_path / "report.json").read_text())["lead_rougeL"] > 0
    assert "4 texts" in reports[0]

    def evaluated(sure=20.0, of_corpus=None, **options):
        changed = types.SimpleNamespace(**{**vars(corpus), **(of_corpus or {})})
        own = types.SimpleNamespace(**{**vars(context), "corpus": changed})
        with jax.set_mesh(mesh):
            evaluate = generation.build("gen", generation.Config(**options), own)
            numbers = evaluate(jnp.float32(sure), {}, 7)
        lines = (tmp_path / "generations.jsonl").read_text().splitlines()
        return numbers, [json.loads(line) for line in lines]

    # As long as the options allow, and with their penalties: a score is the sum over two tokens.
    _, lines = evaluated(2.0, length_penalty=0.0, max_new_tokens=2)
    assert [x["generated"] for x in lines] == [text[:2] for text in SOURCES]
    log_p = 2 - np.log(np.exp(2) + V - 1)
    assert [x["score"] for x in lines] == pytest.approx([2 * log_p] * 4, rel=1e-5)
    # Errors of single texts are counted as the metrics are.
    loud = dict(references=lambda split: [f"{text.upper()}!" for text in SOURCES])
    numbers, lines = evaluated(of_corpus=loud, metrics=("cer",), normalize=True)
    assert numbers["cer"] == 0 and not any(x["cer"] for x in lines)

    # A tokenizer that loses a part of a target: a line reports it, and the difference is shown.
    def lossy_decode(ids):
        return " ".join(Bytes().decode(ids).split())

    lossy = types.SimpleNamespace(
        **{name: getattr(Bytes(), name) for name in ("eos_id", "pad_id", "encode_batch")},
        lossless=False,
        decode=lossy_decode,
    )
    spaced = dict(tokenizer=lossy, references=lambda split: [*SOURCES[:3], "the  fourth"])
    numbers, _ = evaluated(of_corpus=spaced, metrics=("exact_match", "bleu"))
    assert numbers["exact_match"] == 0.75 and "cannot write 1 of 4 targets" in logged[-1]
    assert "'the  fourth'" in (tmp_path / "worst.txt").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["bleu_tokenizer"] == "13a"
    # A recording that cannot be read has no samples.
    short = dict(inputs=lambda split: [*ids_of(*SOURCES)[:3], []])
    numbers, lines = evaluated(of_corpus=short, metrics=("exact_match",))
    assert len(lines) == 3 and numbers["exact_match"] == pytest.approx(2 / 3)
    assert "3 texts" in reports[-1] and "; 1 cannot be read" in reports[-1]
    with jax.set_mesh(mesh):
        some = generation.build("gen", generation.Config(examples=2, metrics=("cer",)), context)
        assert some(jnp.float32(20.0), {}, 7)["cer"] == pytest.approx(1 / 3)  # rows 0 and 2
    worst = (tmp_path / "worst.txt").read_text()
    started = types.SimpleNamespace(start_id=5)
    context.task, given = dataclasses.replace(context.task, model_config=started), []
    corpus.prefix = (6, 7)  # is given, and takes up room
    monkeypatch.setattr(generation.batch_lib, "search", lambda *a, **k: given.append(a) or [])
    with jax.set_mesh(mesh):
        generation.build("gen", generation.Config(metrics=("cer",)), context)
        with pytest.raises(UserError):  # no texts here
            generation.build("gen", generation.Config(), context)(jnp.float32(20.0), {}, 7)
    assert given[0][2][0] == (ids_of(SOURCES[1])[0], [5, 6, 7]) and given[0][3] == 14
    assert "1 of 2 texts has" in worst and "f:2:" in worst and "f:0" not in worst  # row 0 is right
    generation._write_worst(tmp_path, 8, [generation.Example({}, "a", "a", 0.0)], [0.0], 20)
    assert (tmp_path / "worst.txt").read_text() == "step 8: no text has character errors\n"
