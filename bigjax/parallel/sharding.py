"""The table from logical axes to mesh axes, and the shardings that follow from it.

Layers name the axes of every parameter ('embed', 'heads', ...) and of their activations
('batch', 'act_heads', ...). RULES says where each lives. To change a layout, change the table.
"""

from collections.abc import Mapping
import math

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
    # activations
    "batch": BATCH_AXES,
    "length": "sequence",
    "residual_length": ("sequence", "tensor"),  # between the blocks, where norms are computed
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}
# Cut over fewer axes where they do not divide: multi-query attention has one key head for all
# devices, an unbatched sample one row, and generation one token.
MAY_REPLICATE = ("kv_heads", "act_kv_heads", "batch", "length", "residual_length")
GATHERED = ("fsdp",)  # mesh axes that parameters are cut along at rest, and whole while in use


def add_rules(rules: Mapping[str, str | tuple[str, ...] | None], key: str) -> None:
    """Adds the rows of a family or task of its own (its AXES). key: of the config that names it.

    Raises UserError for an axis of a mesh that there is not, and for another row of the same name.
    """
    for name, place in rules.items():
        wrong = set(mesh_axes(place)) - set(AXES)
        if wrong or RULES.setdefault(name, place) != place:
            raise UserError(
                f"The module that config.{key} names puts the axis {name!r} on {place!r}, "
                + (
                    f"which is no axis of a mesh: there are {', '.join(AXES)}."
                    if wrong
                    else f"where it is {RULES[name]!r} already: give it another name."
                )
            )


def spec(
    mesh: Mesh, shape: tuple[int, ...], names: tuple[str | None, ...], what: str
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axis names.

    Raises UserError, with the arithmetic, if a dimension does not divide over its mesh axis.
    """
    out = []
    for size, name in zip(shape, names, strict=True):
        axes = mesh_axes(RULES[name] if name else None)
        ways = size_of(mesh, axes)
        if size % ways and name not in MAY_REPLICATE:
            axis = axes[0]
            raise UserError(
                f"{what} has shape {shape}; its axis {name!r} of {size} is cut over mesh axis "
                f"{axis}={ways}, and {size} = {size // ways} x {ways} + {size % ways}. Change "
                f"mesh.{axis} or that size (a vocabulary may be larger than the tokenizer's)."
            )
        while size % size_of(mesh, axes):
            axes = axes[:-1]
        out.append((axes if len(axes) > 1 else axes[0]) if size_of(mesh, axes) > 1 else None)
    return _trimmed(out)


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """What stands in the table, or at one place of a PartitionSpec, as a tuple."""
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def size_of(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Over how many devices these axes cut."""
    return math.prod(mesh.shape[a] for a in axes)


def _trimmed(axes: list) -> PartitionSpec:
    """Without None at the end, so that equal shardings compare equal."""
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tells the compiler where an activation lives; does nothing outside jax.set_mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, names, "an activation"))


def gathered(w: jax.Array, names: tuple[str | None, ...], dtype) -> jax.Array:
    """A parameter as a layer uses it: in the compute dtype, and whole along GATHERED.

    It is cast before it is gathered, so that half the bytes travel in bfloat16; its gradient goes
    back by a reduce-scatter, where the compiler left alone would sum it whole on every device. It
    is summed in the compute dtype, as the matrix product gives it: twice the bytes for float32.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return w.astype(dtype)
    at_rest = spec(mesh, w.shape, names, "a parameter")
    in_use = _trimmed([None if set(mesh_axes(axis)) & set(GATHERED) else axis for axis in at_rest])
    place = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(w):
        return place(place(w.astype(dtype), at_rest), in_use)

    gather.defvjp(lambda w: (gather(w), None), lambda _, g: (place(g, at_rest).astype(w.dtype),))
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

    A leaf whose path ends with a parameter's path follows that parameter: as it is where the
    shapes agree; with the dimensions it kept where it lost some (Adafactor's factored moments);
    copied otherwise (counters).
    """
    shardings = named_leaves(param_shardings)
    params = {
        name: (x.shape, shardings[name].spec) for name, x in named_leaves(param_shapes).items()
    }

    def one(path, x):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            found = params.get("/".join(parts[start:]))
            if found:
                return NamedSharding(mesh, _follow(x.shape, *found))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, opt_shapes)


def _follow(shape, param_shape, param_spec) -> PartitionSpec:
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
    """The same places in the memory of the hosts; numbers, such as counters, stay on the device."""
    return jax.tree_util.tree_map(
        lambda x, s: s.with_memory_kind("pinned_host") if x.ndim else s, shapes, shardings
    )


def of_batch(mesh: Mesh) -> NamedSharding:
    """Batches: the first axis over the data axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict, rows: slice, batch_size: int) -> dict:
    """Host arrays (rows of the global batch, at least this process's) to global device arrays."""
    sharding = of_batch(mesh)
    if rows == slice(0, batch_size) and jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def put(x):
        def part(at):  # what one device holds, by its place in the global batch
            start, stop, _ = at[0].indices(batch_size)
            return x[start - rows.start : stop - rows.start]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

    return jax.tree_util.tree_map(put, batch)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """Contiguous rows of a global batch, all that this process's devices hold; more where those
    have a gap, as a pod's devices need not follow each other in the mesh."""
    indices = of_batch(mesh).addressable_devices_indices_map((batch_size,))
    starts = [i[0].start or 0 for i in indices.values()]
    stops = [batch_size if i[0].stop is None else i[0].stop for i in indices.values()]
    return slice(min(starts), max(stops))
