"""What the forward pass of a layer keeps for the backward pass; the rest is recomputed.

`model.remat` is a name of REMAT; or names of NAMES, separated by commas, to keep these arrays
alone, with ':host' after those to keep in the memory of the host: 'input:host,query,key,value'.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from bigjax.errors import UserError

# Arrays of a layer, as `kept` names them.
NAMES = {
    "input": "the layer's input, which is kept in any case: 'input:host' moves it to the host",
    "query": "queries as the attention kernel reads them",
    "key": "keys, likewise",
    "value": "values, likewise",
    "context": "the result of attention; on a TPU with the kernel's sums of exponentials",
    "residual": "the input and what attention adds to it, from which the MLP's norm is computed",
    "mlp": "the products before the MLP's activation",
}
HOST = ":host"
ATTENTION = ("query", "key", "value", "context", "residual")

_only = jax.checkpoint_policies.save_only_these_names
# 'none': everything is kept, gathered weights too. 'dots': products with weights, and ATTENTION; a
# product from which a named array is computed is not needed, and not kept. 'attention': all but
# what belongs to the MLP. 'full': only the input of each layer.
REMAT: dict[str, Callable] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _only(*ATTENTION)
    ),
    "attention": _only(*ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def kept(x: jax.Array, name: str) -> jax.Array:
    """x under a name of NAMES, by which model.remat can keep it."""
    return checkpoint_name(x, name)


def named(remat: str) -> list[str]:
    """The names of NAMES in a value of model.remat; none in one of REMAT."""
    return [] if remat in REMAT else [x.removesuffix(HOST) for x in remat.split(",")]


def policy(remat: str) -> Callable:
    """The policy of jax.checkpoint for a value of model.remat. Raises UserError for another."""
    if remat in REMAT:
        return REMAT[remat]
    names = remat.split(",")
    on_host = [name.removesuffix(HOST) for name in names if name.endswith(HOST)]
    on_device = [name for name in names if not name.endswith(HOST)]
    for name in on_device + on_host:
        if name not in NAMES or (on_device + on_host).count(name) > 1:
            raise UserError(
                f"model.remat is {remat!r}; allowed: {', '.join(REMAT)}, or names of arrays to "
                f"keep, each once and without spaces, with {HOST!r} after those to keep in the "
                f"memory of the host: {', '.join(NAMES)}. Such as 'input{HOST},query,key,value'."
            )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=on_device,
        names_which_can_be_offloaded=on_host,
        offload_src="device",
        offload_dst="pinned_host",
    )
