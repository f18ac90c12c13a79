"""What image tasks predict and measure: calibration, top 5, several labels, unreadable images."""

import types

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

from bigjax import evals, losses, tasks
from bigjax.data import measures
from bigjax.data.images.kinds import OneLabel, SeveralLabels
from bigjax.errors import UserError
from bigjax.evals import metrics
from bigjax.tasks.classify import Classify

LABELS = tuple("abcdefg")
NOTHING = types.SimpleNamespace(why=lambda i: f"{i}.png: the file is empty.")


def test_the_calibration_error_by_hand():
    """Bins of a fifteenth, with their upper edge: 0.2 is in the third, 0.21 in the fourth."""
    confidence = np.array([0.2, 0.19, 0.21, 1.0, 0.95, 0.95])
    right = np.array([1, 0, 0, 1, 1, 0], bool)
    bins = measures.calibration(confidence, right)
    assert bins.counts.tolist() == [0, 0, 2, 1, *[0] * 10, 3]
    assert bins.accuracy[[2, 3, 14]].tolist() == pytest.approx([0.5, 0.0, 2 / 3])
    each = 2 * abs(0.5 - 0.195) + 1 * 0.21 + 3 * abs(2 / 3 - 2.9 / 3)
    assert bins.error == pytest.approx(each / 6)
    assert measures.calibration(np.full(8, 0.5), np.arange(8) % 2 == 0).error == 0


def test_one_label_has_probabilities_and_ranks():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, len(LABELS))).astype(np.float32)
    rows = [{"file": f"{i}.png", "label": LABELS[i % 7]} for i in range(40)]
    kind = OneLabel(LABELS)
    predictions = kind.predict(rows, NOTHING, [*logits])
    p = special.softmax(logits.astype(np.float64), -1)
    for made, expected in zip(predictions, p):
        assert list(made["probabilities"].values()) == pytest.approx(expected.tolist())
        assert made["prediction"] == LABELS[expected.argmax()]
        assert made["probability"] == max(made["probabilities"].values())
    numbers, report, by_label = kind.measure(rows, predictions)
    assert kind.metrics == tuple(numbers) == Classify(LABELS).metrics
    true = np.arange(40) % 7
    top5 = sklearn_metrics.top_k_accuracy_score(true, p, k=5)
    assert numbers["top5"] == pytest.approx(top5) and 0.5 < top5 < 1
    assert numbers["accuracy"] == pytest.approx((p.argmax(-1) == true).mean())
    error = measures.calibration(p.max(-1), p.argmax(-1) == true).error
    assert numbers["ece"] == pytest.approx(error) and f"calibration error {error:.4f}" in report
    assert by_label["c"]["support"] == 6 and f"Top-5 accuracy {top5:.4f}" in report


def test_averages_are_over_the_labels_that_occur():
    """Images without some of the classes can be predicted perfectly; scikit-learn's default."""
    rows = [{"file": f"{i}.png", "label": LABELS[i % 3]} for i in range(12)]
    logits = 5 * np.eye(7)[np.arange(12) % 3]
    kind = OneLabel(LABELS)
    numbers, report, by_label = kind.measure(rows, kind.predict(rows, NOTHING, [*logits]))
    assert {numbers[f"{x}_macro"] for x in ("f1", "precision", "recall")} == {1.0}
    assert (
        "d" not in by_label and by_label["macro avg"]["f1-score"] == 1.0 and "  d  " not in report
    )
    logits[0] = 5 * np.eye(7)[4]  # e, which no image has, is predicted
    predictions = kind.predict(rows, NOTHING, [*logits])
    numbers, _, by_label = kind.measure(rows, predictions)
    true, predicted = kind.label_pairs(rows, predictions)
    for name in ("f1", "precision", "recall"):
        score = getattr(sklearn_metrics, f"{name}_score")
        expected = score(true, predicted, average="macro", zero_division=0.0)
        assert numbers[f"{name}_macro"] == pytest.approx(expected)
    assert by_label["e"]["support"] == 0 and numbers["recall_macro"] < 0.75

    several = np.zeros((4, 3), bool)
    several[:, 0], several[:2, 1] = True, True
    numbers, report, by_label = measures.several_labels(several, several * 0.9, "abc")
    assert numbers["f1_macro"] == numbers["mean_average_precision"] == 1.0 and "c" not in by_label
    nothing = measures.several_labels(np.zeros((4, 3), bool), np.zeros((4, 3)), "abc")
    assert nothing.numbers["f1_macro"] == 0.0


def test_of_many_labels_a_prediction_has_the_most_probable():
    labels = tuple(f"n{i}" for i in range(101))
    logits = np.random.default_rng(0).permutation(101).astype(np.float32)
    (made,) = OneLabel(labels).predict([{"file": "x"}], NOTHING, [logits])
    order = [labels[i] for i in np.argsort(-logits)]
    assert [*made["probabilities"]] == order[:10] and made["prediction"] == order[0]
    for rank, expected in ((4, 1.0), (5, 0.0), (50, 0.0)):
        numbers, *_ = OneLabel(labels).measure([{"file": "x", "label": order[rank]}], [made])
        assert numbers["top5"] == expected
    # The rows of a text have the probabilities of all labels, however many there are.
    examples = types.SimpleNamespace(row=[0])
    assert len(Classify(labels).predict([{}], examples, [logits])[0]["probabilities"]) == 101


def test_images_that_cannot_be_read_are_listed_and_not_counted():
    rows = [{"file": f"{i}.png", "label": "a"} for i in range(3)]
    kind = OneLabel(("a", "b"))
    predictions = kind.predict(rows, NOTHING, [np.array([2.0, 0.0]), None, np.array([0.0, 2.0])])
    assert predictions[1] == {
        "prediction": None,
        "probability": None,
        "note": "the file is empty.",
    }
    numbers, report, by_label = kind.measure(rows, predictions)
    assert numbers["accuracy"] == 0.5 and by_label["a"]["support"] == 2
    assert "1 of 3 images could not be read and are not counted:\n  1.png: the file" in report
    assert kind.label_pairs(rows, predictions) == (["a", "a"], ["a", "b"])
    assert len(kind.confidences(rows, predictions)[0]) == 2
    with pytest.raises(UserError, match="None of the 3 image.s. can be read. .*0.png: the file is"):
        kind.predict(rows, NOTHING, [None] * 3)


def test_several_labels_of_an_image():
    rng = np.random.default_rng(1)
    labels = LABELS[:4]
    true = rng.random((30, 4)) < [0.5, 0.3, 0.2, 0.0]
    logits = (rng.normal(size=(30, 4)) + true).astype(np.float32)
    rows = [
        {"file": str(i), "label": [name for name, x in zip(labels, row) if x]}
        for i, row in enumerate(true)
    ]
    kind = SeveralLabels(labels)
    outputs = [*logits, None]
    predictions = kind.predict([*rows, {"file": "30", "label": ["a"]}], NOTHING, outputs)
    p = special.expit(logits.astype(np.float64))
    assert predictions[0]["prediction"] == [n for n, x in zip(labels, p[0]) if x >= 0.5]
    assert predictions[0]["probability"] == [x for x in p[0] if x >= 0.5]
    numbers, report, by_label = kind.measure([*rows, {"file": "30", "label": ["a"]}], predictions)
    assert kind.metrics == tuple(numbers) and kind.label_pairs(rows, predictions[:-1]) is None
    precisions = [sklearn_metrics.average_precision_score(true[:, i], p[:, i]) for i in range(3)]
    assert numbers["mean_average_precision"] == pytest.approx(np.mean(precisions))  # without d
    f1 = sklearn_metrics.f1_score(true, p >= 0.5, average=None, zero_division=0.0)
    assert [by_label[name]["f1-score"] for name in labels] == pytest.approx(f1.tolist())
    assert numbers["f1_macro"] == pytest.approx(f1.mean())
    assert by_label["a"]["average_precision"] == pytest.approx(precisions[0])
    assert "Mean average precision" in report and "1 of 31 images could not be read" in report


@pytest.mark.parametrize("n", [3, 150])
def test_pictures_of_few_and_of_many_labels(tmp_path, n):
    labels = [f"n{i}" for i in range(n)]
    metrics._draw_confusion(tmp_path / "c.png", labels, labels[::-1], labels)
    confidence = np.linspace(0.1, 1, n)
    metrics._draw_reliability(tmp_path / "r.png", confidence, confidence > 0.5)
    assert all((tmp_path / f"{x}.png").read_bytes()[:4] == b"\x89PNG" for x in "cr")


def test_no_confusion_matrix_of_very_many_labels(tmp_path):
    labels = [f"n{i}" for i in range(21_843)]  # 3.8 GB
    metrics._draw_confusion(tmp_path / "c.png", labels[:9], labels[:9], labels)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("n", [7, 101])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_top_5_of_equal_logits_are_the_first_ones(n, value):
    """As in the accuracy, and in losses.top_k, so that it is never below the accuracy."""
    labels = [f"n{n - i}" for i in range(n)]  # whatever their names
    kind = OneLabel(labels)
    rows = [{"file": f"{i}", "label": label} for i, label in enumerate(labels)]
    logits = np.full((n, n), value, np.float32)
    predictions = kind.predict(rows, NOTHING, [*logits])
    numbers, *_ = kind.measure(rows, predictions)
    hits = losses.top_k(logits, np.arange(n), np.ones(n), 5)[0]
    assert round(numbers["top5"] * n) == float(hits) == (0 if np.isnan(value) else 5)
    for few, share in ((slice(5), 1.0), (slice(5, n), 0.0)):
        numbers, *_ = kind.measure(rows[few], predictions[few])
        assert numbers["top5"] == (0 if np.isnan(value) else share)


def test_metrics_of_a_task_without_labels_are_refused():
    task = tasks.Task(init=None, axes={}, loss=None, load_data=None, batch_shapes=None)
    config = types.SimpleNamespace(task=types.SimpleNamespace(name="causal_lm"))
    context = evals.Context(config, task, None, None, print, None, {})
    with pytest.raises(UserError, match="'metrics' is for tasks on labelled data.* 'causal_lm'"):
        metrics.build("test", metrics.Config(), context)
