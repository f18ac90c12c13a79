"""What the forward pass of a layer keeps for the backward pass; the rest is recomputed."""

import jax
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"

# By `model.remat`. 'none': everything is kept, gathered weights too. 'dots': products with weights,
# and what `kept` names; a product from which a named array is computed is not needed, and not kept.
# 'full': only the input of each layer.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def kept(x: jax.Array) -> jax.Array:
    """x, which model.remat='dots' keeps: what the backward pass reads of a product, such as the sum
    that a norm takes, or a kernel's input in the order of its axes."""
    return checkpoint_name(x, KEPT)
