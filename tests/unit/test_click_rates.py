"""Click rates and their buckets, by hand."""

import numpy as np
import pytest

from bigjax.projects.seqgan.headline_rows import ClickRates


def row(clicks=None, impressions=None):
    return {"clicks": clicks, "impressions": impressions}


def test_rates_by_hand():
    train = [row(clicks=c, impressions=n) for c, n in ((0, 10), (10, 100), (30, 90), (8, 200))]
    rates = ClickRates(train, 2, 20)
    assert rates.mean == pytest.approx(0.12)
    bucket, rate, known = rates([*train, row(), row(clicks=3), row(clicks=0, impressions=0)])
    expected = [2.4 / 30, 12.4 / 120, 32.4 / 110, 10.4 / 220]
    np.testing.assert_allclose(rate, [*expected, 0, 0, 0], rtol=1e-6)
    assert rates.boundaries.tolist() == [pytest.approx((expected[0] + expected[1]) / 2)]
    assert bucket.tolist() == [1, 2, 2, 1, 0, 0, 0] and known.tolist() == [1] * 4 + [0] * 3
    assert (bucket.dtype, rate.dtype, known.dtype) == (np.int32, np.float32, np.float32)


def test_clicks_without_impressions_are_relative():
    rates = ClickRates([row(clicks=c) for c in (1, 3, 8)], 3, 100)
    bucket, rate, _ = rates([row(clicks=c) for c in (0, 4, 400)])
    assert rate.tolist() == [0, 1, 100] and bucket.tolist() == [1, 2, 3]


def test_buckets_are_of_equal_size_where_rates_differ():
    rng = np.random.default_rng(0)
    rows = [row(clicks=c, impressions=1000) for c in rng.permutation(800)]
    assert np.bincount(ClickRates(rows, 8, 50)(rows)[0]).tolist() == [0] + [100] * 8
    same = [row(clicks=5, impressions=10)] * 9
    assert set(ClickRates(same, 8, 50)(same)[0].tolist()) == {1}


@pytest.mark.parametrize(
    "clicks, buckets",
    [
        ([0, 0, 0, 0, 0, 0, 1, 2], [1, 1, 1, 1, 1, 1, 5, 8]),
        ([0, 1, 2, 2, 2, 2, 2, 2], [1, 3, 8, 8, 8, 8, 8, 8]),
        ([1, 1, 1, 3], [1, 1, 1, 8]),
    ],
)
def test_equal_rates_leave_the_first_and_the_last_bucket_filled(clicks, buckets):
    rows = [row(clicks=c, impressions=1000) for c in clicks]
    assert ClickRates(rows, 8, 0)(rows)[0].tolist() == buckets


@pytest.mark.parametrize("train, n_buckets", [([row()], 8), ([row(clicks=1)], 0), ([], 8)])
def test_no_clicks_are_unknown(train, n_buckets):
    bucket, rate, known = ClickRates(train, n_buckets, 100)([row(clicks=4)])
    assert (bucket.tolist(), rate.tolist(), known.tolist()) == ([0], [0], [0])
