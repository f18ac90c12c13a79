"""From a model's outputs to predictions, files and metrics."""

import json
import os
import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bigjax import evals
from bigjax.data import measures
from bigjax.data.kinds import encode_rows
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.data.tables import read_table
from bigjax.data.tokenizers.wordpiece import train_wordpiece
from bigjax.errors import UserError
from bigjax.evals import metrics
from bigjax.infer import predict
from bigjax.parallel import mesh as mesh_lib
from bigjax.tasks.answer import Answer, squad_scores
from bigjax.tasks.classify import Classify, Regress
from bigjax.tasks.tag import Tag
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" . ".join(WORDS)] * 3, 120)


DATA = types.SimpleNamespace(seq_len=24, truncate=True, doc_stride=4)


def test_classes_and_numbers():
    rows = [{"text": "a"}, {"text": "b"}]
    examples = types.SimpleNamespace(row=np.array([0, 1]))
    outputs = [np.array([0.0, 2.0, 1.0]), np.array([3.0, 0.0, 0.0])]
    predictions = Classify(("x", "y", "z")).predict(rows, examples, outputs)
    assert [f["prediction"] for f in predictions] == ["y", "x"]
    e = np.exp([0, 2, 1])
    assert list(predictions[0]["probabilities"].values()) == pytest.approx((e / e.sum()).tolist())
    assert predictions[0]["probability"] == pytest.approx(e[1] / e.sum())
    assert Regress().predict(rows, examples, [np.array([1.5]), np.array([-2.0])]) == [
        {"prediction": 1.5},
        {"prediction": -2.0},
    ]


def test_tags_stand_at_first_pieces_and_cut_words_have_none(tokenizer):
    rows = [
        {"tokens": ["the", "zzz", "shape"], "where": ""},
        {"tokens": ["model"] * 40, "where": ""},
    ]
    examples = encode_rows(rows, DATA, Tag(("O", "X")), tokenizer, with_labels=False)
    outputs = [np.tile([1.0, 0.0], (n, 1)) for n in examples.lengths]
    outputs[0][examples.words_of(0)[2]] = [0.0, 1.0]
    predictions = Tag(("O", "X")).predict(rows, examples, outputs)
    assert predictions[0]["prediction"] == ["O", "O", "X"]
    kept = len(examples.words_of(1))
    assert kept < 40 and predictions[1]["prediction"] == ["O"] * kept + [None] * (40 - kept)


def answer_outputs(examples, best):
    """Logits with a peak: {(example, column, 0 start or 1 end): value}."""
    out = [np.zeros((n, 2)) for n in examples.lengths]
    for (i, column, which), value in best.items():
        out[i][column, which] = value
    return out


def test_answers_are_the_best_span_of_all_windows(tokenizer):
    context = " ".join(WORDS[:20])
    rows = [{"question": "which", "context": context, "where": ""}]
    examples = encode_rows(rows, DATA, Answer(), tokenizer, with_labels=False)
    assert len(examples) > 1
    last = len(examples) - 1
    columns = np.flatnonzero(examples.spans_of(last)[:, 0] >= 0)
    a, b = columns[0], columns[2]
    find = lambda best, **options: Answer(**{"max_answer_tokens": 5, **options}).predict(
        rows, examples, answer_outputs(examples, best)
    )[0]
    spans = examples.spans_of(last)
    want = context[spans[a, 0] : spans[b, 1]]
    predictions = find({(last, a, 0): 4.0, (last, b, 1): 4.0, (0, columns[0], 0): 3.0})
    assert predictions == {"prediction": want, "score": 8.0}
    # The end before the start, a span that is too long, the question: none of them is an answer
    assert find({(last, b, 0): 4.0, (last, a, 1): 4.0})["score"] == 4.0
    assert find({(last, a, 0): 4.0, (last, b, 1): 4.0}, max_answer_tokens=2)["score"] == 4.0
    assert find({(0, 1, 0): 9.0, (0, 1, 1): 9.0})["score"] == 0.0
    # No answer: only where it is allowed, and where every window says so
    none = {(i, 0, k): 5.0 for i in range(len(examples)) for k in (0, 1)}
    assert find(none)["prediction"] != ""
    assert find(none, allow_no_answer=True) == {"prediction": "", "score": 10.0}
    assert find({**none, (1, 0, 0): -9.0}, allow_no_answer=True)["prediction"] != ""


def test_outputs_find_their_examples_in_packed_rows(tokenizer):
    """A model whose output is its input: each example gets its own tokens back."""
    rows = [{"text": " ".join(WORDS[i % 9 : i % 9 + 1 + i % 4]), "where": ""} for i in range(30)]
    examples = encode_rows(rows, DATA, Classify(), tokenizer, with_labels=False)
    data = LabelledBatches(examples, tokenizer.pad_id, 24, 4, shuffle=False)
    mesh = mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    columns = lambda p, e, f, batch: batch["tokens"][..., None]
    first = lambda p, e, f, batch: jnp.take_along_axis(batch["tokens"], batch["first"] + 1, axis=1)[
        ..., None
    ]
    for function in (columns, first):
        kind = Tag() if function is columns else Classify()
        task = types.SimpleNamespace(outputs=function, kind=kind)
        with jax.set_mesh(mesh):
            predictions, sums = predict.make_outputs(task, mesh, False)({}, {}, {}, data)
        assert sums == {} and len(predictions) == 30
        for i, got in enumerate(predictions):
            own = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]]
            np.testing.assert_array_equal(
                got[:, 0] if function is columns else got, own if function is columns else own[1:2]
            )


def test_evaluations_of_a_run_compile_once(tokenizer, tmp_path):
    kind = Classify(("a", "b"))
    rows = [{"text": w, "label": "ab"[i % 2], "where": ""} for i, w in enumerate(WORDS[:10])]
    examples = encode_rows(rows, DATA, kind, tokenizer, with_labels=True)
    data = LabelledBatches(examples, tokenizer.pad_id, 24, 4, shuffle=False)
    traced = []

    def outputs(params, extras, frozen, batch):
        traced.append(batch)
        return params * jnp.ones((*batch["example"].shape, 2))

    task = types.SimpleNamespace(
        kind=kind,
        outputs=outputs,
        loss=lambda params, *args: ((params, jnp.float32(1)), ({}, {})),
    )
    corpus = types.SimpleNamespace(split=lambda *a, **k: data, rows=lambda split: rows)
    c = types.SimpleNamespace(train=types.SimpleNamespace(batch_size=4))
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    context = evals.Context(c, task, corpus, mesh, print, tmp_path, {}, unwritten=[])
    with jax.set_mesh(mesh):
        evaluate = metrics.build("valid", metrics.Config(), context)
        losses = [evaluate(jnp.float32(x), {}, x)["loss"] for x in (1, 2)]
    assert losses == [1, 2] and len(traced) == 1


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    header = path.read_text(encoding="utf-8").split("\n")[0]
    columns = [name.strip('"') for name in header.split("\t" if path.suffix == ".tsv" else ",")]
    return [row["row"] for row in read_table(path, columns[-1:])]


def test_files(tmp_path):
    rows = [{"text": 'a\t"b"\r, c\nd', "where": "x:1"}, {"text": "c", "where": "x:2"}]
    predictions = [{"prediction": ["O", None]}, {"prediction": "y", "probabilities": {"y": 1.0}}]
    for ending in ("csv", "jsonl"):
        predict.write(tmp_path / f"o.{ending}", rows, predictions)
    assert read(tmp_path / "o.jsonl") == [
        {"text": 'a\t"b"\r, c\nd', "prediction": ["O", None]},
        {"text": "c", "prediction": "y", "probabilities": {"y": 1.0}},
    ]
    assert read(tmp_path / "o.csv") == [
        {"text": 'a\t"b"\r, c\nd', "prediction": '["O", null]'},
        {"text": "c", "prediction": "y"},
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.csv", "o.jsonl"]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_row_without_an_answer_has_no_score(tmp_path, tokenizer):
    """As one whose context has no token: -inf is no number of JSON, and no cell of a table."""
    rows = [
        {"question": "a", "context": "\u200b\u200e", "where": "x:1"},
        {"question": "a", "context": "b", "where": "x:2", "other": float("nan"), "none": None},
    ]
    none = types.SimpleNamespace(row=[], spans_of=None)
    predictions = Answer(max_answer_tokens=3).predict(rows, none, [])
    predictions[1]["score"] = 1.5
    for ending in predict.FORMATS:
        predict.write(tmp_path / f"o{ending}", rows, predictions)
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first["score"] is None and first["prediction"] == ""
    assert second["score"] == 1.5 and second["other"] is None
    for ending, end in ((".tsv", "\t"), (".csv", ",")):
        first, second = (tmp_path / f"o{ending}").read_text().splitlines()[1:]
        assert first.endswith(end) and second.endswith(f"{end}1.5")


def test_tabs_have_no_quoting(tmp_path):
    path, predictions = tmp_path / "o.tsv", [{"prediction": 'say "y"'}]
    predict.write(path, [{"text": 'a "b", \u2028c'}], predictions)
    assert path.read_bytes().decode() == 'text\tprediction\na "b", \u2028c\tsay "y"\n'
    assert read(path) == [{"text": 'a "b", \u2028c', "prediction": 'say "y"'}]
    path.unlink()
    for end in "\t\n\r":
        with pytest.raises(UserError, match=r"o\.tsv: column 'text' of row 2 .*\.csv or \.jsonl"):
            predict.write(path, [{"text": "a"}, {"text": f"a{end}b"}], predictions * 2)
        with pytest.raises(UserError, match=r"'prediction' of row 1 "):
            predict.write(path, [{"text": "a"}], [{"prediction": f"a{end}b"}])
    with pytest.raises(UserError, match="of the header"):
        predict.write(path, [{"row": {"a\tb": "a"}}], predictions)
    assert not list(tmp_path.iterdir())


def test_all_columns_are_carried_through(tmp_path):
    row = {"id": 7, "sentence": "a", "x": 0.123456789012, "prediction": [None], "z": "\ud800"}
    rows = [
        {"text": "a", "where": "f:1", "row": row},
        {"text": "b", "where": "f:2", "row": {"sentence": "b", "prediction_2": True}},
    ]
    predictions = [
        {"prediction": 0.123456789012, "probability": 0.5, "probabilities": {"y": 1.0}}
    ] * 2
    for ending in ("tsv", "csv", "jsonl"):
        predict.write(tmp_path / f"o.{ending}", rows, predictions)
    assert read(tmp_path / "o.jsonl")[0] == {
        **row,
        "prediction_3": 0.123456789012,
        "probability": 0.5,
        "probabilities": {"y": 1.0},
    }
    for ending in ("tsv", "csv"):
        got = read(tmp_path / f"o.{ending}")
        assert list(got[0].items()) == [
            ("id", "7"),
            ("sentence", "a"),
            ("x", "0.123456789012"),
            ("prediction", "[null]"),
            ("z", "\\ud800"),
            ("prediction_2", ""),
            ("prediction_3", "0.123457"),
            ("probability", "0.5"),
        ]
        assert (got[1]["id"], got[1]["prediction_2"]) == ("", "true")


def test_one_host_writes(tmp_path, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    predict.write(tmp_path / "o.csv", [{"text": "a"}], [{"prediction": "b"}])
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "o.tsv").mkdir()
    with pytest.raises(UserError, match=r"o\.tsv' cannot be written: .*directory.* Name a file"):
        predict.write(tmp_path / "o.tsv", [{"text": "a"}], [{"prediction": "b"}])
    source = tmp_path / "in.tsv"
    source.write_text("text\na\n")
    (tmp_path / "link.tsv").symlink_to(source)
    os.link(source, tmp_path / "hard.tsv")
    check = lambda name: predict.check_output(str(tmp_path / name), str(source))
    for name, message in (
        ("o.xls", r"\.tsv, \.csv, \.jsonl"),
        ("o.tsv", "is a folder"),
        ("none/o.csv", "none' is not a folder"),
        ("in.tsv", "is the input"),
        ("link.tsv", "is the input"),
        ("hard.tsv", "is the input"),
    ):
        with pytest.raises(UserError, match=message):
            check(name)
    check("new.csv")
    predict.check_output("gs://b/o.csv", str(source))
    monkeypatch.chdir(tmp_path)
    predict.check_output("o.csv", "tfds:glue/sst2")
    with pytest.raises(UserError, match="is the input"):
        predict.check_output("in.tsv", str(source))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission"):
        check("new.csv")


def test_a_table_for_people():
    rows = [{"text": "a\tb\nc", "where": "x:1"}, {"text": "x" * 35 + "y" * 35, "where": "x:2"}]
    predictions = [
        {"prediction": "p", "probability": 0.12345678, "probabilities": {"p": 1.0}},
        {"prediction": None, "probability": None, "note": "no"},
    ]
    lines = predict.as_text(rows, predictions).splitlines()
    assert [line.split() for line in lines] == [
        ["text", "prediction", "probability", "note"],
        ["a", "b", "c", "p", "0.123457"],
        ["x" * 28 + "..." + "y" * 28, "no"],
    ]
    assert len({line.find(x) for line, x in zip(lines, ("prediction", "p "))}) == 1


# --- Metrics ---------------------------------------------------------------------------------


def test_classification_metrics_by_hand():
    rows = [{"label": label} for label in "aaabbc"]
    predictions = [{"prediction": label, "probability": 0.75} for label in "aabbbb"]
    numbers, text, by_label = Classify(("a", "b", "c")).measure(rows, predictions)
    f1 = [2 * 1.0 * 2 / 3 / (1 + 2 / 3), 2 * 0.5 * 1 / 1.5, 0.0]
    assert numbers["accuracy"] == pytest.approx(4 / 6)
    assert numbers["f1_macro"] == pytest.approx(np.mean(f1))
    assert numbers["f1_weighted"] == pytest.approx(np.average(f1, weights=[3, 2, 1]))
    assert numbers["precision_macro"] == pytest.approx(np.mean([1, 1 / 2, 0]))
    assert numbers["recall_macro"] == pytest.approx(np.mean([2 / 3, 1, 0]))
    assert numbers["precision_weighted"] == pytest.approx(
        np.average([1, 1 / 2, 0], weights=[3, 2, 1])
    )
    assert numbers["recall_weighted"] == pytest.approx(4 / 6)
    # Matthews: (c s - sum t p) / sqrt((s2 - sum p2)(s2 - sum t2))
    assert numbers["matthews"] == pytest.approx(
        (4 * 6 - (3 * 2 + 2 * 4)) / ((36 - 20) * (36 - 14)) ** 0.5
    )
    assert numbers["ece"] == pytest.approx(0.75 - 4 / 6)
    assert by_label["b"]["precision"] == 0.5 and by_label["b"]["support"] == 2
    assert "precision" in text and "calibration error 0.0833" in text and "top5" not in numbers


def test_tag_metrics_leave_o_out():
    rows = [{"tags": ["O", "X", "X"]}, {"tags": ["O", "O"]}]
    predictions = [{"prediction": ["O", "X", "O"]}, {"prediction": ["O", "X"]}]
    numbers, text, by_label = Tag(("O", "X")).measure(rows, predictions)
    assert numbers["accuracy"] == pytest.approx(3 / 5)
    assert numbers["f1_micro"] == pytest.approx(0.5)  # of X: precision 1/2, recall 1/2
    assert "(truncated)" not in text and "(truncated)" not in by_label


def test_a_word_that_was_cut_off_is_missed_and_is_no_other_label(tmp_path):
    rows = [{"tags": ["X", "O", "Y", "X"]}, {"tags": ["O", "X"]}]
    predictions = [{"prediction": ["X", "O", "Y", None]}, {"prediction": ["O", None]}]
    kind = Tag(("Y", "O", "X"))
    numbers, text, by_label = kind.measure(rows, predictions)
    assert numbers["accuracy"] == pytest.approx(4 / 6)
    assert by_label["Y"]["precision"] == by_label["X"]["precision"] == 1.0
    assert by_label["X"]["recall"] == pytest.approx(1 / 3)
    assert numbers["precision_macro"] == 1.0 and numbers["recall_macro"] == pytest.approx(2 / 3)
    assert "(truncated)" in text and by_label["(truncated)"]["support"] == 0
    metrics._draw_confusion(
        tmp_path / "c.png", *kind.label_pairs(rows, predictions), list(kind.labels)
    )
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert measures.shown_labels(["Y"], ["Y", "(truncated)"]) == ["Y", "(truncated)"]
    assert (
        measures.shown_labels(["Y", "(truncated)"], ["(truncated)"])
        == ["Y", "(truncated)"]
        != measures.shown_labels(["Y"], [])
    )


@pytest.mark.parametrize(
    "kind, row, prediction",
    [
        (Classify(("a", "b")), {"label": "a"}, "b"),
        (Regress(), {"label": "1"}, 2.0),
        (Tag(("a", "b")), {"tags": ["a"]}, ["b"]),
        (Answer(), {"answers": []}, ""),
    ],
)
def test_names_of_metrics_are_known_before(kind, row, prediction):
    numbers, _, _ = kind.measure([row] * 2, [{"prediction": prediction, "probability": 0.5}] * 2)
    assert kind.metrics == tuple(numbers)
    data = types.SimpleNamespace(n_examples=1, n_batches=1, note="")
    corpus = types.SimpleNamespace(split=lambda *_, **__: data, rows=lambda _: [])
    context = types.SimpleNamespace(
        config=ConfigDict({"train": {"batch_size": 1}}),
        corpus=corpus,
        log=str,
        task=types.SimpleNamespace(kind=kind),
        mesh=mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]),
    )
    evaluate = metrics.build("valid", types.SimpleNamespace(split="valid"), context)
    assert evaluate.metrics == ("loss", *numbers)


def test_regression_metrics():
    rows = [{"label": str(x)} for x in (1.0, 2.0, 3.0, 10.0)]
    predictions = [{"prediction": x} for x in (1.0, 2.5, 3.0, 4.0)]
    numbers, _, _ = Regress().measure(rows, predictions)
    assert numbers["spearman"] == pytest.approx(1.0) and 0.7 < numbers["pearson"] < 0.95
    assert numbers["mse"] == pytest.approx(36.25 / 4) and numbers["mae"] == pytest.approx(6.5 / 4)
    constant = [{"prediction": 1.0}] * 4
    assert Regress().measure(rows, constant)[0]["pearson"] == 0.0


def test_answer_scores_as_squad_counts_them():
    score = lambda golds, text: squad_scores([golds], [text])
    assert score(["The Eiffel Tower"], "eiffel tower!") == {"exact_match": 1.0, "f1": 1.0}
    assert score(["red car", "blue"], "a blue") == {"exact_match": 1.0, "f1": 1.0}
    assert score(["red car"], "red bike")["f1"] == pytest.approx(0.5)
    assert score(["a b c d"], "b c")["f1"] == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
    assert score([], "") == {"exact_match": 1.0, "f1": 1.0}
    assert score([], "something") == {"exact_match": 0.0, "f1": 0.0}
