"""FLOPs that models declare, against the sizes of their kernels."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from bigjax import tasks
from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.models import bert, gpt
from bigjax.trees import named_leaves


def kernels(model, of=""):
    """The number of elements of all kernels whose path starts with `of`."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
    leaves = named_leaves(unbox(shapes["params"]))
    return sum(
        math.prod(x.shape) for k, x in leaves.items() if k.endswith("kernel") and k.startswith(of)
    )


@pytest.mark.parametrize(
    "preset", ["llama2-7b", "palm-8b", "gpt2-124m", "gemma2-2b", "pythia-160m"]
)
def test_flops_of_a_decoder(preset):
    c = gpt.Config(**gpt.PRESETS[preset])
    weights = kernels(gpt.Model(c)) + c.vocab_size * c.d_model * c.tie_embeddings
    # Scores and weighted values; a causal mask leaves (1 + 2 + ... + 1000) / 1000 keys per token.
    attention = 12 * c.n_layers * c.n_heads * c.head_dim * 500.5
    assert gpt.flops_per_token(c, 1000) == 6 * weights + attention


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_flops_of_an_encoder_and_of_its_vocabulary_projection(preset):
    c = bert.Config(**bert.PRESETS[preset])
    model = bert.Model(c, ("mlm",))
    attention = 12 * c.n_layers * c.d_model * 100
    assert bert.flops_per_token(c, 100) == 6 * kernels(model, "stack") + attention
    assert bert.head_flops(c) == 6 * (kernels(model, "mlm") + c.vocab_size * c.d_model)


def test_flops_that_are_no_number_are_refused():
    family = SimpleNamespace(__name__="my_lab.mixer", flops_per_token=lambda c, seq_len: None)
    with pytest.raises(UserError, match="my_lab.mixer.flops_per_token returned None.*a number"):
        tasks.flops_per_token(family, None, 8)
    assert tasks.flops_per_token(SimpleNamespace(), None, 8) == 0.0
