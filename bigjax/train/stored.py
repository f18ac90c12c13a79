"""Arrays of a checkpoint as they are stored: their checksums and types, and what shows damage."""

from collections.abc import Collection
import re

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bigjax import cloud
from bigjax.errors import UserError
from bigjax.trees import named_leaves, path_name

# What is raised where a file holds what cannot be decoded, by all its decoders.
_DECODING = (
    *(ValueError, LookupError, AttributeError, TypeError, EOFError),
    *(NotImplementedError, RecursionError),
)
# TensorStore's errors are ValueErrors; of those that begin with a status these are of that kind.
_STATUS = re.compile("[A-Z_]{4,}: ")
_DECODING_STATUS = re.compile("(DATA_LOSS|OUT_OF_RANGE|FAILED_PRECONDITION): ")


class Damaged(Exception):
    """A checkpoint is not what was saved."""


class Missing(Damaged):
    """A file of a checkpoint is not there."""


@jax.jit
def _checksums(leaves: dict) -> dict:
    """A uint32 a leaf that changes with any byte of it and does not depend on the sharding."""

    def one(x):
        x = jax.device_put(x, jax.memory.Space.Device)  # optim.offload leaves it with the host
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        elif not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            x = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        # The place of each element, dimension by dimension: reshaping would gather the shards.
        place, stride = jnp.uint32(0), 1
        for d in reversed(range(x.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, d) * jnp.uint32(stride % 2**32)
            stride *= x.shape[d]
        # One to one in x at each place, so no change of one element can stay unseen; mixed as in
        # MurmurHash3's finalizer, so that changes of several do not cancel.
        h = x.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return (h ^ (h >> 16)).sum(dtype=jnp.uint32)

    return {k: one(x) for k, x in leaves.items()}


def checksums(tree) -> dict[str, int]:
    """{path: checksum} of every array."""
    return {k: int(v) for k, v in jax.device_get(_checksums(named_leaves(tree))).items()}


def check_form(abstract, saved: Collection[str] | None, folder: epath.Path) -> None:
    """Raises UserError where other arrays were saved than those of abstract, in the folder of an
    item: whoever wrote it meant it so. saved: their paths by `meta`; None if there is no such item.
    """
    wanted = named_leaves(abstract)
    if saved is None:
        raise _of_another_form(folder.parent, f"it holds no {folder.name}")
    for name in [*wanted, *saved]:
        if name not in saved:
            raise _of_another_form(folder, f"{name} is not there, {wanted[name].shape} here")
        if name not in wanted:
            raise _of_another_form(folder, f"{name} is there, but not here")


def _of_another_form(folder: epath.Path, how: str) -> UserError:
    workdir = next(p for p in folder.parents if p.name == "checkpoints").parent
    return UserError(
        f"{folder} was written by another model, optimizer, train.ema or version of bigjax: {how}. "
        f"Use the one that wrote it; or start another --workdir with --config.init_from={workdir}, "
        "which takes the parameters alone."
    )


def as_stored(abstract, folder: epath.Path):
    """abstract with the types of the arrays in the folder of an item. Raises UserError where what
    was saved has other shapes, Damaged where an array is not there (see `check_form`)."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    stored = named_leaves(handler.metadata(folder).tree)

    def of(path, x):
        name = path_name(path)
        if name not in stored:
            raise Missing(f"{name} is not in {folder}")
        if tuple(stored[name].shape) != x.shape:
            shape = tuple(stored[name].shape)
            raise _of_another_form(folder, f"{name} is {shape} there, {x.shape} here")
        return x.update(dtype=stored[name].dtype)

    return jax.tree_util.tree_map_with_path(of, abstract)


def cast(tree, abstract):
    """tree in the types of abstract."""

    def leaf(x, like):
        if x.dtype == like.dtype:
            return x
        on_device = lambda x: jax.device_put(x, jax.memory.Space.Device)  # see _checksums
        return jax.jit(lambda x: on_device(x).astype(like.dtype), out_shardings=like.sharding)(x)

    return jax.tree_util.tree_map(leaf, tree, abstract)


def damage_shown_by(error: Exception) -> type[Damaged] | None:
    """Missing or Damaged if an error says that a file is not there or not what was saved; None if
    it could not be read: by a time-out, for want of permission or memory, or by a failing disk."""
    *_, root = cloud.causes(error)
    text = str(root)
    if isinstance(root, (FileNotFoundError, KeyError)) or (  # KeyError: of an item
        isinstance(root, ValueError) and text.startswith("NOT_FOUND: ")
    ):
        return Missing
    if not isinstance(root, ValueError) or not _STATUS.match(text):
        return Damaged if isinstance(root, _DECODING) else None
    return Damaged if _DECODING_STATUS.match(text) and "[OS error" not in text else None
