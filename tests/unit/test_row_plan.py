"""bigjax.data.row_plan: which examples share a row."""

import time

import numpy as np
import pytest

from bigjax.data import row_plan
from bigjax.data.row_plan import plan_rows
from tests.unit.test_data_labelled import data_of


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.lognormal(3.3, 0.6, n),
        lambda rng, n: rng.integers(5, 129, n),
        lambda rng, n: rng.normal(60, 20, n),
        lambda rng, n: rng.lognormal(3.7, 0.8, n),
    ],
)
def test_packing_leaves_little_padding(draw):
    lengths = np.clip(draw(np.random.default_rng(0), 20_000).astype(int), 5, 128)
    for shuffle in (True, False):
        assert data_of(lengths, seq_len=128, shuffle=shuffle).padding < 0.1
    loose = data_of(lengths, seq_len=128, packing=False)
    assert loose.padding == pytest.approx(1 - lengths.mean() / 128) and loose.padding > 0.2


@pytest.mark.parametrize("seq_len", [32, 96, 128])
@pytest.mark.parametrize("least, most", [(5, 9), (6, 8), (3, 40), (11, 11), (3, 3), (2, 6)])
def test_packing_of_short_texts(seq_len, least, most):
    rng = np.random.RandomState(0)
    lengths = rng.randint(least, min(most, seq_len) + 1, 4000)
    if (seq_len, least) == (32, 11):  # two fill 22 of 32, whatever the plan is
        assert data_of(lengths, seq_len=32).padding == pytest.approx(1 - 22 / 32)
        return
    for shuffle in (True, False):
        data = data_of(lengths, seq_len=seq_len, shuffle=shuffle)
        assert data.padding < 0.1 and data.max_examples <= seq_len // 3
        assert data.batch_at(0)["first"].shape == (8, data.max_examples)


@pytest.mark.parametrize("short, share, long", [(3, 0.5, 128), (4, 0.9, 120), (4, 0.97, 60)])
def test_packing_of_short_texts_among_long_ones(short, share, long):
    rng = np.random.RandomState(0)
    assert data_of(np.where(rng.rand(5000) < share, short, long), seq_len=128).padding < 0.05


def test_a_row_has_no_more_places_than_its_lengths_need():
    assert data_of([100] * 40, seq_len=128).max_examples == 1
    assert data_of([60, 61] * 40, seq_len=128).max_examples == 2
    assert data_of([2] * 200, seq_len=8).max_examples == 2
    assert data_of([30] * 400, packing=False).max_examples == 1


def test_planning_is_fast():
    lengths = np.random.default_rng(0).integers(5, 129, 400_000)
    start = time.perf_counter()
    plan_rows(lengths, np.arange(len(lengths)), 128, 16)
    assert time.perf_counter() - start < 10  # 0.6 s on an idle core


def test_plan_by_hand():
    def plan(lengths, most):
        order, offsets = plan_rows(np.array(lengths), np.arange(len(lengths)), 10, most)
        return [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]

    assert plan([6, 7, 3, 4, 10, 2], 3) == [[0, 3], [1, 2], [4], [5]]  # the fullest that has room
    assert plan([1] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert plan([5, 5], 1) == [[0], [1]] and plan([], 3) == []


def test_plan_with_few_open_rows(monkeypatch):
    monkeypatch.setattr(row_plan, "_OPEN_ROWS", 2)
    order, offsets = plan_rows(np.array([6, 7, 8, 2, 3, 4]), np.arange(6), 10, 4)
    assert sorted(order.tolist()) == list(range(6))
    rows = [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    assert rows == [[0, 4], [1, 3], [2], [5]]  # the row of 8 was closed before the 2 came
