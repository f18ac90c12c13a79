"""The stored arrays of a checkpoint: checksums, dtypes, and which read errors mean damage."""

from collections.abc import Collection
import re

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from bigjax import cloud
from bigjax.errors import UserError
from bigjax.trees import named_leaves, path_name

# Exceptions that decoders raise for file content that cannot be decoded.
_DECODING = (
    *(ValueError, LookupError, AttributeError, TypeError, EOFError),
    *(NotImplementedError, RecursionError),
)
# TensorStore's errors are ValueErrors. Some start with a status; these statuses mean damage.
_STATUS = re.compile("[A-Z_]{4,}: ")
_DECODING_STATUS = re.compile("(DATA_LOSS|OUT_OF_RANGE|FAILED_PRECONDITION): ")


class Damaged(Exception):
    """A checkpoint differs from what was saved."""


class Missing(Damaged):
    """A file of a checkpoint is missing."""


@jax.jit
def _checksums(leaves: dict) -> dict:
    """{name: uint32} that changes with any byte of a leaf and does not depend on its sharding."""

    def leaf_checksum(x):
        x = jax.device_put(x, jax.memory.Space.Device)  # optim.offload keeps it in host memory
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        elif not jnp.issubdtype(x.dtype, jnp.unsignedinteger):
            x = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        # The flat index of each element, by dimension: reshaping would gather the shards.
        index, stride = jnp.uint32(0), 1
        for d in reversed(range(x.ndim)):
            index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, d) * jnp.uint32(stride % 2**32)
            stride *= x.shape[d]
        # A bijection of x for each index, so a change of one element is always detected; mixed as
        # in MurmurHash3's finalizer, so that changes of several elements do not cancel.
        h = x.astype(jnp.uint32) ^ (index * jnp.uint32(0x9E3779B1))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return (h ^ (h >> 16)).sum(dtype=jnp.uint32)

    return {k: leaf_checksum(x) for k, x in leaves.items()}


def checksums(tree) -> dict[str, int]:
    """{path: checksum} of every array."""
    return {k: int(v) for k, v in jax.device_get(_checksums(named_leaves(tree))).items()}


def check_form(abstract, saved: Collection[str] | None, folder: epath.Path) -> None:
    """Raises UserError if the saved arrays of an item are not those of abstract: then it is not
    damaged, but another model or optimizer wrote it.

    saved: paths of the saved arrays by `meta`; None if the item was not saved. folder: the item's.
    """
    wanted = named_leaves(abstract)
    if saved is None:
        raise _mismatch(folder.parent, f"it has no {folder.name}")
    for name in [*wanted, *saved]:
        if name not in saved:
            raise _mismatch(
                folder,
                f"{name} is missing in it, and has the shape {wanted[name].shape} in this run",
            )
        if name not in wanted:
            raise _mismatch(folder, f"it has {name}, which this run does not have")


def _mismatch(folder: epath.Path, difference: str) -> UserError:
    workdir = next(p for p in folder.parents if p.name == "checkpoints").parent
    return UserError(
        f"{folder} was written by another model, optimizer, train.ema or version of bigjax: "
        f"{difference}. Use the one that wrote it; or start another --workdir with "
        f"--config.init_from={workdir}, which loads only the parameters."
    )


def as_stored(abstract, folder: epath.Path):
    """abstract with the dtypes of the stored arrays of an item.

    Raises UserError if stored shapes differ, Missing if an array is absent (see `check_form`).
    """
    me = jax.process_index()
    this_process = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=this_process)
    stored = named_leaves(handler.metadata(folder).tree)

    def with_stored_dtype(path, x):
        name = path_name(path)
        if name not in stored:
            raise Missing(f"{name} is not in {folder}")
        if tuple(stored[name].shape) != x.shape:
            shape = tuple(stored[name].shape)
            raise _mismatch(
                folder, f"{name} has the shape {shape} in it, and {x.shape} in this run"
            )
        return x.update(dtype=stored[name].dtype)

    return jax.tree_util.tree_map_with_path(with_stored_dtype, abstract)


def cast(tree, abstract):
    """tree with the dtypes of abstract."""

    def leaf(x, like):
        if x.dtype == like.dtype:
            return x
        on_device = lambda x: jax.device_put(x, jax.memory.Space.Device)  # see _checksums
        return jax.jit(lambda x: on_device(x).astype(like.dtype), out_shardings=like.sharding)(x)

    return jax.tree_util.tree_map(leaf, tree, abstract)


def damage_shown_by(error: Exception) -> type[Damaged] | None:
    """Missing or Damaged if a read error shows that a file is missing or differs from what was
    saved; None for other causes: a time-out, a failing disk, or no permission or memory."""
    *_, root = cloud.causes(error)
    text = str(root)
    if isinstance(root, (FileNotFoundError, KeyError)) or (  # KeyError: a missing item
        isinstance(root, ValueError) and text.startswith("NOT_FOUND: ")
    ):
        return Missing
    if not isinstance(root, ValueError) or not _STATUS.match(text):
        return Damaged if isinstance(root, _DECODING) else None
    return Damaged if _DECODING_STATUS.match(text) and "[OS error" not in text else None
