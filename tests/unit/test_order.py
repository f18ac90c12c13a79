"""Which example comes when."""

import numpy as np

from bigjax.data.order import Order


def epochs(order, n, source):
    """Examples of a source, by its epochs [n epochs, size]."""
    which, example = order(range(n))
    mine = example[which == source]
    return mine[: len(mine) // 50 * 50].reshape(-1, 50)


def test_sources_of_equal_size_have_different_orders():
    order = Order([50, 50], [1.0, 1.0], seed=3)
    first, second = epochs(order, 200, 0), epochs(order, 200, 1)
    for orders in (first, second):
        assert len(orders) == 2 and (np.sort(orders) == np.arange(50)).all()
        assert (orders[0] != orders[1]).mean() > 0.5  # each epoch has another order
    assert (first[0] != second[0]).mean() > 0.5


def test_the_seed_decides():
    a, b, c = (Order([50], [1.0], seed)(range(100))[1] for seed in (3, 3, -4))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.5


def test_examples_of_a_batch_are_shared_by_weight():
    which, _ = Order([10, 1000], [3.0, 1.0], seed=0)(range(400))
    assert np.bincount(which).tolist() == [300, 100]
