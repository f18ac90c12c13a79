"""From windows of the token stream to the arrays of a batch."""

import numpy as np


def make_batch(
    tokens: np.ndarray,
    is_first: np.ndarray,
    lengths: np.ndarray,
    token_bytes: np.ndarray,
    packing: bool,
) -> dict[str, np.ndarray]:
    """Next-token inputs and targets of b rows of L = seq_len positions.

    Args:
      tokens: int32 [b, L + 1], padded after `lengths`.
      is_first: bool [b, L + 1], true at the first token of a document.
      lengths: int [b], how many of a row's tokens are real; 0 to L + 1.
      token_bytes: int32 [vocab_size], UTF-8 bytes of each id.
      packing: whether documents in a row are separated.

    Returns:
      inputs, targets int32 [b, L]; weights float32 [b, L]: 0 where the target is padding or,
      with packing, the start of another document; target_bytes int32 [b]: UTF-8 bytes of the
      row's weighted targets. With packing also segment_ids int32 [b, L], 1, 2, ... along the
      row and 0 on padding, and positions int32 [b, L], from 0 in each segment.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    column = np.arange(inputs.shape[1], dtype=np.int32)
    counted = column + 1 < lengths[:, None]
    if packing:
        counted &= ~is_first[:, 1:]
    n_bytes = np.where(counted, token_bytes[targets], 0).sum(1, dtype=np.int32)
    batch = {
        "inputs": np.ascontiguousarray(inputs),
        "targets": np.ascontiguousarray(targets),
        "weights": counted.astype(np.float32),
        "target_bytes": n_bytes,
    }
    if packing:
        real = column < lengths[:, None]
        first = is_first[:, :-1].copy()
        first[:, 0] = True  # the document of the row's first tokens may begin before the row
        begins = np.maximum.accumulate(np.where(first, column, 0), axis=1)
        batch["segment_ids"] = np.cumsum(first, axis=1, dtype=np.int32) * real
        batch["positions"] = (column - begins) * real
    return batch
