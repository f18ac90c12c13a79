"""Sizes of masks, against their table of all pairs."""

import dataclasses
import itertools

import numpy as np
import pytest

from bigjax.layers import mask as mask_lib
from bigjax.layers.mask import (
    Blocks,
    Causal,
    Column,
    Mask,
    Prefix,
    Row,
    Window,
    _sees_no_later_key,
    is_causal,
    key_range,
    mean_keys,
    table,
)


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
