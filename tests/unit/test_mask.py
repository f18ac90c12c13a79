"""What masks see, and their sizes against the table of all pairs."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers import mask as mask_lib
from bigjax.layers.mask import (
    Blocks,
    Causal,
    Column,
    Full,
    Mask,
    Prefix,
    Row,
    Window,
    _sees_no_later_key,
    dense,
    is_causal,
    key_range,
    mean_keys,
    pairs,
    table,
)

CAUSAL, FULL = Causal(), Full()


@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """A mask without intervals."""

    stride: int

    def sees(self, q, k):
        return (k <= q) & ((q - k) % self.stride == 0)


BLOCKS = Blocks(32, ((0,), (0, 1), (1, 2), (0, 7), (), (3, 4, 5), (6,), (7, 1)))
SEVERAL = [
    Window(3, 2),
    Window(-2, 9),
    Prefix(7),
    Prefix(300),
    Row(7),
    Row(16, 5),
    BLOCKS,
    Causal(),
]
SEVERAL += [Blocks(64, ((), (0, 2, 2), (9, 3), (1, 0)))]


@pytest.mark.parametrize(
    "mask",
    [
        *SEVERAL,
        *(a & b for a, b in itertools.combinations(SEVERAL, 2)),
        *(a | b for a, b in itertools.combinations(SEVERAL, 2)),
        (Row(16, 5) | Window(3, 2)) & (Causal() | Prefix(7)) | Blocks(64, ((1,), (0,), (), ())),
        Causal() & Column(7, 3),
        Strided(5),
        Strided(5) | Window(0, 1),
    ],
    ids=str,
)
def test_sizes_of_a_mask_are_those_of_its_table(mask):
    T = 250
    seen = table(mask, range(T), range(T))
    assert mean_keys(mask, T) == seen.sum() / T
    assert _sees_no_later_key(mask, T) == (not np.triu(seen, 1).any())
    for queries in (range(T), range(5, 6), range(64, 128), range(200, 250)):
        keys = np.flatnonzero(seen[queries.start : queries.stop].any(0))
        want = slice(keys[0], keys[-1] + 1) if len(keys) else slice(0, 1)
        assert key_range(mask, queries, T) == want


def test_the_sizes_of_a_long_mask_need_no_table(monkeypatch):
    monkeypatch.setattr(mask_lib, "table", None)
    T, mask = 2**16, Window(1024) & Causal() | Prefix(4)
    q = np.arange(T)
    keys = np.minimum(q, 1024) + 1 + np.clip(q - 1024, 0, 4)  # the last: those of the prefix
    keys[:3] = 4
    assert mean_keys(mask, T) == keys.sum() / T
    assert not is_causal(mask, T) and is_causal(Row(256) & Causal(), T)
    assert _sees_no_later_key(Row(256) & Causal(), T)
    assert key_range(Window(1024), range(T // 2, T), T) == slice(T // 2 - 1024, T)


def test_a_mask_of_a_user_is_causal_if_no_query_sees_a_later_key():
    assert is_causal(Strided(3), 300) and is_causal(Strided(3), 2)
    assert not is_causal(Strided(3) | Window(0, 1), 300)


def test_the_mask_by_hand():
    segments = jnp.array([[1, 1, 2, 2]])
    seen = dense(CAUSAL, 4, 4, 0, segments, segments)
    np.testing.assert_array_equal(seen[0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    # Two queries at slots 2 and 3 of four; in a second row at 0 and 1.
    np.testing.assert_array_equal(dense(CAUSAL, 2, 4, 2)[0], [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(
        dense(CAUSAL, 2, 4, jnp.array([2, 0])),
        [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]],
    )
    assert dense(FULL, 4, 4) is None


BY_HAND = {
    "window": (Window(1, 1), ["110000", "111000", "011100", "001110", "000111", "000011"]),
    "causal window": (
        Causal() & Window(2),
        ["100000", "110000", "111000", "011100", "001110", "000111"],
    ),
    "prefix": (Causal() | Prefix(2), ["110000", "110000", "111000", "111100", "111110", "111111"]),
    "blocks": (
        Blocks(2, ((0,), (0, 1), (2,))),
        ["110000", "110000", "111100", "111100", "000011", "000011"],
    ),
    "rows of two after two": (
        Row(2, 2),
        ["110000", "110000", "111100", "111100", "110011", "110011"],
    ),
    "columns of two after two": (
        Column(2, 2),
        ["110000", "110000", "111010", "110101", "111010", "110101"],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_kinds_of_masks_by_hand(name):
    mask, rows = BY_HAND[name]
    want = np.array([[c == "1" for c in row] for row in rows])
    np.testing.assert_array_equal(table(mask, range(6), range(6)), want)
    np.testing.assert_array_equal(np.broadcast_to(dense(mask, 6, 6), (1, 6, 6))[0], want)
    assert hash(mask) == hash(BY_HAND[name][0]) and mask != FULL
    for query in range(6):
        keys = np.flatnonzero(want[query])
        assert key_range(mask, range(query, query + 1), 6) == slice(keys[0], keys[-1] + 1)
    blocks = want.reshape(3, 2, 2, 3).any((1, 3)).sum()
    assert pairs(mask, 6, range(6), (2, 3)) == 6 * blocks


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL,
        FULL,
        CAUSAL & Window(70),
        CAUSAL | Prefix(90),
        CAUSAL & (Row(16, 32) | Column(16, 32)),
        Blocks(64, ((0,), (0, 1), (0, 3), (1, 2, 3))),
    ],
    ids=str,
)
def test_mean_keys_are_those_of_the_dense_mask(mask):
    want = table(mask, range(256), range(256)).sum() / 256
    assert mean_keys(mask, 256) == want == pairs(mask, 256, range(256), (1, 1)) / 256
