"""The table from logical axes to mesh axes, and the shardings that follow from it.

Layers name the axes of every parameter ('embed', 'heads', ...) and of their activations
('batch', 'act_heads', ...). RULES maps each to mesh axes. To change a layout, change the table.
"""

from collections.abc import Iterator
import difflib
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax.errors import UserError
from bigjax.parallel.mesh import AXES, BATCH_AXES
from bigjax.trees import named_leaves, path_name

RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "vocab": "tensor",
    "position": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    "filters": "fsdp",  # of a convolution
    # activations
    "batch": BATCH_AXES,
    "length": "sequence",
    "residual_length": ("sequence", "tensor"),  # between blocks, where norms are computed
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}
# Sharded over fewer mesh axes if not divisible: multi-query attention has one key head for all
# devices, a convolution may have few filters, an unbatched sample has one row, and generation one
# token.
MAY_REPLICATE = ("kv_heads", "filters", "act_kv_heads", "batch", "length", "residual_length")
GATHERED = ("fsdp",)  # mesh axes that parameters are sharded over at rest, but not while in use


class Axis(str):
    """A logical axis of a user's module with its own rule: Axis('expert', 'fsdp').

    It is used in place of the name of an axis of RULES, and belongs to the arrays that name it: two
    modules may use one name with different rules. rule: as a value of RULES. Raises UserError
    for an unknown mesh axis, and for the name of an axis of RULES.
    """

    rule: str | tuple[str, ...] | None

    def __new__(cls, name: str, rule: str | tuple[str, ...] | None = None) -> "Axis":
        unknown = set(mesh_axes(rule)) - set(AXES)
        if unknown:
            raise UserError(
                f"The axis {name!r} is mapped to {rule!r}, which is not a mesh axis. Use "
                f"one of {', '.join(AXES)}, a tuple of them, or None."
            )
        if name in RULES:
            raise UserError(
                f"The axis {name!r} is one of bigjax, mapped to {RULES[name]!r}. Use its name, "
                "or give yours another one."
            )
        axis = super().__new__(cls, name)
        axis.rule = rule
        return axis

    # With the rule: otherwise jax.jit and functools.cache, given a module as a static argument,
    # would reuse the trace of a module that maps the same name to another mesh axis.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and (str(self), self.rule) == (str(other), other.rule)

    def __ne__(self, other: object) -> bool:  # str defines one
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.rule))


def check_names(shape: tuple[int, ...], names: tuple[str | None, ...], what: str) -> None:
    """Raises UserError if an array does not have one axis name per dimension."""
    if len(names) != len(shape):
        raise UserError(
            f"{what} has {len(shape)} dimensions, {tuple(shape)}, but {len(names)} axis names, "
            f"{tuple(names)}. Give one for each dimension: a name or None."
        )


def spec(
    mesh: Mesh, shape: tuple[int, ...], names: tuple[str | None, ...], what: str
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axis names.

    Raises UserError for a name without a rule, for two names that are sharded over one mesh axis,
    and, with the arithmetic, for a dimension that does not divide over its mesh axis.
    """
    check_names(shape, names, what)
    out: list = []
    used: dict[str, str | None] = {}  # {mesh axis: name}
    for size, name in zip(shape, names, strict=True):
        axes = mesh_axes(_rule(name, what) if name else None)
        ways = size_of(mesh, axes)
        if size % ways and name not in MAY_REPLICATE:
            axis = axes[0]
            raise UserError(
                f"{what} has shape {shape}; its axis {name!r} of {size} is sharded over mesh axis "
                f"{axis}={ways}, and {size} = {size // ways} x {ways} + {size % ways}. Change "
                f"mesh.{axis} or that size (a vocabulary may be larger than the tokenizer's)."
            )
        while size % size_of(mesh, axes):
            axes = axes[:-1]
        for axis in (a for a in axes if mesh.shape[a] > 1):
            if axis in used:
                raise UserError(
                    f"{what} has the axes {used[axis]!r} and {name!r}, both sharded over mesh axis "
                    f"{axis}={mesh.shape[axis]}, but an array can be sharded over a mesh axis only "
                    f"once. Name one of them None, or set mesh.{axis}=1."
                )
            used[axis] = name
        out.append((axes if len(axes) > 1 else axes[0]) if size_of(mesh, axes) > 1 else None)
    return _trimmed(out)


def _rule(name: str, what: str) -> str | tuple[str, ...] | None:
    if isinstance(name, Axis):
        return name.rule
    if name in RULES:
        return RULES[name]
    near = difflib.get_close_matches(name, RULES, 1)
    raise UserError(
        f"{what} has the logical axis {name!r}, which has no sharding rule."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" An axis of your own brings its rule: sharding.Axis({name!r}, 'tensor'), or None to "
        "replicate it. Existing axes: "
        f"{', '.join(RULES)}."
    )


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """An entry of RULES or of a PartitionSpec as a tuple of mesh axes."""
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def size_of(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """The number of shards over these mesh axes: the product of their sizes."""
    return math.prod(mesh.shape[a] for a in axes)


def _trimmed(axes: list) -> PartitionSpec:
    """A PartitionSpec without trailing None, so that equal shardings compare equal."""
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains the sharding of an activation by its logical axes; does nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, names, "an activation"))


def gathered(
    w: jax.Array, names: tuple[str | None, ...], dtype, what: str = "a parameter"
) -> jax.Array:
    """A parameter as a layer uses it: in the compute dtype, and gathered over GATHERED.

    It is cast before it is gathered, which halves the bytes sent in bfloat16. Its gradient is
    reduce-scattered; by itself the compiler would all-reduce it. The gradient is summed in the
    compute dtype, in which the matrix product gives it; float32 would double the bytes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return w.astype(dtype)
    at_rest = spec(mesh, w.shape, names, what)
    in_use = _trimmed([None if set(mesh_axes(axis)) & set(GATHERED) else axis for axis in at_rest])
    shard = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(w):
        return shard(shard(w.astype(dtype), at_rest), in_use)

    gather.defvjp(lambda w: (gather(w), None), lambda _, g: (shard(g, at_rest).astype(w.dtype),))
    return gather(w)


def of_params(mesh: Mesh, shapes, axes):
    """Shardings of parameters. shapes: tree of ShapeDtypeStruct; axes: tree of name tuples."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x, names: NamedSharding(
            mesh, spec(mesh, x.shape, names, f"parameter {path_name(path)}")
        ),
        shapes,
        axes,
        is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
    )


def of_opt_state(mesh: Mesh, opt_shapes, param_shapes, param_shardings):
    """Shardings of an optimizer state, by path and shape.

    A leaf whose path ends with a parameter's path has that parameter's sharding, without the
    dimensions that the leaf lacks (Adafactor's factored moments). Any other leaf (counters) is
    replicated.
    """
    shardings = named_leaves(param_shardings)
    params = {
        name: (x.shape, shardings[name].spec) for name, x in named_leaves(param_shapes).items()
    }

    def leaf_sharding(path, x):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            param = params.get("/".join(parts[start:]))
            if param:
                return NamedSharding(mesh, _matching_spec(x.shape, *param))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf_sharding, opt_shapes)


def _matching_spec(shape, param_shape, param_spec) -> PartitionSpec:
    axes = list(param_spec) + [None] * (len(param_shape) - len(param_spec))
    out, d = [], 0
    for size in shape:  # greedy: each kept dimension is the next parameter dimension of its size
        while d < len(param_shape) and param_shape[d] != size:
            d += 1
        if d == len(param_shape):
            return PartitionSpec()
        out.append(axes[d])
        d += 1
    return _trimmed(out)


def on_host(shapes, shardings):
    """The shardings in host memory; scalars, such as counters, stay in device memory."""
    return jax.tree_util.tree_map(
        lambda x, s: s.with_memory_kind("pinned_host") if x.ndim else s, shapes, shardings
    )


def of_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: their first axis over BATCH_AXES."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict, rows: slice, batch_size: int) -> dict:
    """Turns host arrays into global device arrays.

    rows: the rows of the global batch that `batch` holds, at least those of this process's devices.
    """
    sharding = of_batch(mesh)
    if rows == slice(0, batch_size) and jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def put(x):
        def device_rows(at):  # at: the device's slices of the global batch
            start, stop, _ = at[0].indices(batch_size)
            return x[start - rows.start : stop - rows.start]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, device_rows)

    return jax.tree_util.tree_map(put, batch)


def device_batches(mesh: Mesh, batches: Any, batch_size: int, n: int) -> Iterator[dict]:
    """The first n of data.Batches as global device arrays; each process reads its own rows."""
    rows = local_rows(mesh, batch_size)
    for i in range(n):
        yield put_batch(mesh, batches.batch_at(i, rows), rows, batch_size)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The smallest contiguous range of rows of a global batch with all rows of this process's
    devices. These may have gaps: a pod's devices need not be consecutive in the mesh."""
    indices = of_batch(mesh).addressable_devices_indices_map((batch_size,))
    starts = [i[0].start or 0 for i in indices.values()]
    stops = [batch_size if i[0].stop is None else i[0].stop for i in indices.values()]
    return slice(min(starts), max(stops))
