"""The checksum of an array changes with every bit of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.train.checkpoint import checksums


@pytest.mark.parametrize("dtype, bits", [("float32", 32), ("bfloat16", 16), ("int8", 8)])
def test_every_bit_changes_the_checksum(dtype, bits):
    word = np.arange(1, 5).astype(f"uint{bits}")
    flipped = {f"{b}": word ^ (np.array([0, 0, 1, 0]) << b).astype(word.dtype) for b in range(bits)}
    arrays = {k: x.view(jnp.dtype(dtype)) for k, x in ({"whole": word} | flipped).items()}
    checksum = checksums({k: jnp.asarray(x) for k, x in arrays.items()})
    assert len(set(checksum.values())) == bits + 1
