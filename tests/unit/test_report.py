"""Reading metrics for a report."""

import math

import pytest

from bigjax import report
from bigjax.errors import UserError


def test_curves_by_metric(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/valid/loss": 3.0}\n{"step": 1, "loss": 2.5}\n'
        '{"step": 2, "loss": "nan", "eval/valid/loss": 2.0}\n'
    )
    curves = report.read(str(tmp_path))
    assert curves["eval/valid/loss"] == ([0, 2], [3.0, 2.0])
    assert curves["loss"][0] == [1, 2] and curves["loss"][1][1] != curves["loss"][1][1]


def test_each_panel_has_its_own_metrics(tmp_path):
    from matplotlib import pyplot as plt

    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5, "eval/valid/loss": 3.0, "eval/test/loss": 3.0}\n'
        '{"step": 1, "grad_norm": 0.5}\n{"step": 2, "grad_norm": 2.0}\n'
    )
    shown = []
    plt.close, close = (lambda figure: shown.extend(figure.axes)), plt.close
    try:
        report.draw([str(tmp_path)], None)
    finally:
        plt.close = close
    assert [len(a.lines) for a in shown] == [1, 2, 0, 1, 0, 0]
    valid, test = shown[1].lines
    assert valid.get_marker() != test.get_marker()
    norms = [label.get_text() for label in shown[3].get_yticklabels(which="both")]
    assert {"1", "2"} <= {*norms} and not any("$" in text for text in norms)
    assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    "suffix, begins", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_a_picture_has_the_format_of_its_suffix(tmp_path, suffix, begins):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    report.draw([str(tmp_path)], str(tmp_path / f"out.{suffix}"))
    assert (tmp_path / f"out.{suffix}").read_bytes().startswith(begins)
    with pytest.raises(UserError, match="out.jpeg must end in .png, .pdf or .svg"):
        report.draw([str(tmp_path)], str(tmp_path / "out.jpeg"))


@pytest.mark.parametrize("unit", ["tokens", "images", "examples"])
def test_throughput_is_in_the_unit_of_the_task(unit):
    names = ["loss", "steps_per_sec", "examples_per_sec"]
    names += [f"{unit}_per_sec"] * (unit != "examples")
    assert report._matching(names, ("loss", "*_per_sec")) == ["loss", f"{unit}_per_sec"]


def test_non_finite_numbers_and_names_that_look_like_formulas(tmp_path):
    folder = tmp_path / "a $_$ \u65e5"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": null, "eval/x/loss": "inf"}\n')
    assert math.isnan(report.read(str(folder))["loss"][1][0])
    assert "eval/x/loss inf" in report.draw([str(folder)], None)
    for line in (
        *(b"[1]", b'{"step": "x"}', b'{"step": 1, "loss": {}}', b"null", b'{"\xff": 1}', b"{}"),
        *(b'{"step": 1e999}', b'{"step": 1, "loss": %s}' % (b"9" * 400), b"[" * 100_000),
        *(b'{"step": %s}' % (b"9" * n) for n in (16, 400, 5000)),
        *(b'{"step": -1}', b'{"step": NaN}', b'{"step": null}'),
    ):
        (folder / "metrics.jsonl").write_bytes(line + b"\n")
        with pytest.raises(UserError, match="line 1 is not a valid line of metrics"):
            report.read(str(folder))


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metrics.jsonl"):
        report.read(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n{"ste')
    with pytest.raises(UserError, match="line 2"):
        report.read(str(tmp_path))
    with pytest.raises(UserError, match="--workdir"):
        report.draw([], None)


@pytest.mark.filterwarnings("error:overflow")
def test_numbers_and_names_that_matplotlib_cannot_draw(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1e308, "grad_norm": 0, "eval/\\ud800/loss": 2}\n'
        '{"step": 9007199254740991, "loss": -1e308, "grad_norm": 1e-320, "eval/\\u0000/loss": 2}\n'
    )
    assert "loss -1e+308" in report.draw([str(tmp_path)], None)
    assert (tmp_path / "report.png").exists()
