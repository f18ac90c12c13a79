"""What `bigjax plan` and docs/plan.md say about published step times, against what is kept of the
compiled steps in benchmarks/published_steps.json. No compiler is needed."""

import importlib
import pathlib

import pytest

from bigjax.plan import chips, command

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("published_runs")


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_errors_that_a_plan_states_are_those_of_its_constants(published):
    results = published.predictions()
    assert words(published.summary(results)) in words(command.TRUST)


def test_the_page_has_the_table(published):
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert published.table(published.predictions()) in page
    assert words(published.left_out(published.predictions())) in words(page)


def test_the_errors_are_small_enough_to_plan_by(published):
    results = published.predictions()
    assert len(results) >= 6 and len({p.run.chip for p in results}) >= 4
    assert published.median_error(results) <= 0.1
    assert all(abs(p.error) <= 0.25 for p in results)


def test_what_is_kept_belongs_to_the_runs(published):
    """In order; and the FLOPs of matrix products are those of the model: 6 per weight and token, 8
    if it is recomputed, and with plain attention those of the scores."""
    results = published.predictions()
    readings = [r for r in published.kept() if r]
    assert len(readings) == len(results)
    for p, reading in zip(results, readings):
        assert (reading["run"], reading["topology"]) == (p.run.name, p.run.topology)
        assert reading["fingerprint"] == p.run.fingerprint, f"Read {p.run.name} again."
        assert 0 < reading["hbm_gib"] <= chips.CHIPS[p.run.chip].limit
        flops = 6 * published.weights(p.run.model) * p.run.rows * p.run.tokens
        assert 1 <= reading["flops"] / flops < 1.4, p.run


def test_seconds_follow_from_a_published_speed(published):
    """GPT-3 175B: 174.6 billion weights; 2,048 tokens at 100 TFLOP/s take 6 x 174.6e9 x 2048 / 1e14
    seconds, and with all scores 12 x 96 x 12288 x 2048 more per token."""
    model = dict(published.GPT3_175B, d_ff=4 * 12288, head_dim=128)
    weights = 96 * 12 * 12288**2 + 50304 * 12288
    assert published.weights(model) == weights
    seconds = published._seconds(model, 1, 2048, 100, 0)
    assert seconds == pytest.approx(6 * weights * 2048 / 1e14)
    more = published._seconds(model, 2, 2048, 100, 1) - 2 * seconds
    assert more == pytest.approx(2 * 12 * 96 * 12288 * 2048**2 / 1e14)


def test_the_line_of_json_is_of_expected_over_published_seconds(published):
    slow = [p._replace(work=2 * p.run.seconds, communication=0.0) for p in published.predictions()]
    result = published.result(slow)
    assert result["ours"] == result["ratio"] == pytest.approx(2.0) and result["theirs"] == 1
    assert result["median_error"] == result["worst_error"] == pytest.approx(1.0)
