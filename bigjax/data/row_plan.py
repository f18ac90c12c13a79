"""Which labelled examples share a row."""

import math

import numpy as np

_OPEN_ROWS = 512  # rows that may still get an example while a plan is made
_FULL = 0.95  # a plan that fills this share of its rows is not improved


def plan_packed(
    lengths: np.ndarray, order: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """`plan_rows`, and the maximum of examples per row that it is made with: 1.5 times as many as
    fill a row on average, more if that leaves rows unfilled. lengths: at least one.
    """
    bound = max(1, min(seq_len // 3, seq_len // int(lengths.min())))
    most = min(bound, math.ceil(1.5 * seq_len / float(lengths.mean())))
    plan, row_offsets = plan_rows(lengths, order, seq_len, most)
    while most < bound and float(lengths.sum()) < _FULL * (len(row_offsets) - 1) * seq_len:
        more = min(bound, 2 * most)
        other = plan_rows(lengths, order, seq_len, more)
        if len(other[1]) > 0.99 * len(row_offsets):
            break
        (plan, row_offsets), most = other, more
    return plan, row_offsets, most


def plan_rows(
    lengths: np.ndarray, order: np.ndarray, seq_len: int, max_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples share a row: best fit, in `order`, with a bounded number of open rows.

    Args:
      lengths: int [n], at most seq_len; order: a permutation of n.
      max_examples: per row.

    Returns: int64 [n], the examples of row 0, of row 1, ...; int64 [rows + 1], where each begins.
    """
    if max_examples == 1:
        return order.astype(np.int64), np.arange(len(order) + 1)
    rows: list[list[int]] = []
    with_room: list[list[list[int]]] = [[] for _ in range(seq_len + 1)]  # open rows by free slots
    rooms, n_open = 0, 0  # bit r of rooms: a row with r free slots is open
    least = int(lengths.min()) if len(lengths) else 0
    for i, length in zip(order.tolist(), lengths[order].tolist()):
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
            n_open -= 1
        else:
            row, room = [], seq_len
            rows.append(row)
        row.append(i)
        room -= length
        if room >= least and len(row) < max_examples:
            with_room[room].append(row)
            rooms |= 1 << room
            n_open += 1
        if n_open > _OPEN_ROWS:  # the fullest one is closed
            room = (rooms & -rooms).bit_length() - 1
            with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
            n_open -= 1
    return (
        np.array([i for row in rows for i in row], np.int64),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
    )


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of n."""
    # RandomState, and not a Generator: NumPy has promised never to change its numbers.
    mixed = np.random.SeedSequence([seed % 2**64, 1]).generate_state(4)
    return np.random.RandomState(mixed).permutation(n)
