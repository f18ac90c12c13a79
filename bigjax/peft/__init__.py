"""Parameter-efficient tuning: a few new parameters beside a frozen model. config.peft names a
module, whose `build(options)` makes a Method from its Config."""

from collections.abc import Callable, Collection, Mapping
import contextlib
import dataclasses
import math
import re
from typing import Any, NamedTuple
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import check_ranges
from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers import quantised
from bigjax.layers.basic import Dense, Output
from bigjax.layers.quantised import Quantised
from bigjax.trees import named_leaves

BASE_DTYPES = ("float32", "bfloat16", *quantised.KINDS)
RANDOM = "random"  # the base whose parameters are initial values
_SHOWN = 12  # paths in a message
# Names a layer of a Stack, which is called with its index.
_IN_STACK = re.compile(r"layers|layer_\d+|block_\d+_of_\d+")


@dataclasses.dataclass(frozen=True)
class Options:
    """The keys that the Config of every method has."""

    # The frozen model: a run's work folder or a Hugging Face folder; random: untrained, for a trial
    base: str = ""
    also: str = "head"  # regex over parameter paths: trained in full; 'head': the task's own head

    # How the base is stored: float32, bfloat16; int8 or nf4: its dense layers, the rest in bfloat16
    base_dtype: str = "float32"

    RANGES = {}
    PATHS = ("base",)
    MAY_CHANGE = ("base", "dropout")  # the base's weights are compared, whatever its folder

    def __post_init__(self):
        check_ranges("peft", self)
        if self.base_dtype not in BASE_DTYPES:
            raise UserError(
                f"peft.base_dtype is {self.base_dtype!r}; allowed: {', '.join(BASE_DTYPES)}."
            )
        check_regex(getattr(self, "targets", ""))


class Layer(NamedTuple):
    """A call of a module of the model, which a Method may change.

    path: such as 'stack/layers/attention/query', the same for scan=True and scan=False. run():
    calls the module, by default with the arguments. rng: of this layer and step, None without
    dropout.
    """

    module: nn.Module
    path: str
    run: Callable[..., Any]
    arguments: tuple
    keywords: Mapping[str, Any]
    rng: jax.Array | None

    def has(self, name: str, chosen: bool) -> bool:
        """Whether the module has the adapter of this name: at initialisation whether it was
        `chosen`, and later what the variables say, so that a model without adapters, such as a
        teacher, stays as it is."""
        if self.module.is_initializing():
            return chosen
        return self.module.has_variable("params", name)


class Sizes(NamedTuple):
    """Numbers of inputs and outputs of a dense layer, and of the axes of its inputs."""

    inputs: int
    outputs: int
    n_axes: int = 1


@dataclasses.dataclass
class Seen:
    """What an initialisation under `intercepted` has met: modules, the sizes of dense layers and
    the logical axes of all parameters, by path (see Layer; axes without that of a stack's layers).
    """

    modules: dict[str, type] = dataclasses.field(default_factory=dict)
    dense: dict[str, Sizes] = dataclasses.field(default_factory=dict)
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)

    def of(self, *types: type) -> list[str]:
        """The paths of the modules of these types."""
        return [path for path, cls in self.modules.items() if issubclass(cls, types)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to tune a model.

    layer(Layer) -> the output of a module's call, possibly with parameters of its own.
    added(Layer) -> keys and values [P, K, D] that all queries of an Attention see; None: none.
    trains(path) -> whether a parameter of the model itself is trained, as in BitFit. path: as of
        Layer, also where the model is not scanned.
    merge(params) -> the parameters of a plain model that computes the same, in float32; None if
        there is none. params: of the model and the method, as of scan=True or scan=False.
    first(params) -> the method's parameters that follow from the model's, as {path: array}.
    check(seen): raises UserError for options that do not suit the model.
    packs: whether rows may hold several examples (data.packing).
    """

    layer: Callable[[Layer], Any]
    added: Callable[[Layer], tuple[jax.Array, jax.Array] | None] | None = None
    trains: Callable[[str], bool] = lambda path: False
    merge: Callable[[dict], dict] | None = None
    first: Callable[[dict], dict] | None = None
    check: Callable[[Seen], None] = lambda seen: None
    packs: bool = True


def intercepted(
    method: Method, rng: jax.Array | None = None, seen: Seen | None = None
) -> contextlib.AbstractContextManager:
    """A context in which the method changes the layers of models. rng: for its dropout."""
    indices: list = []  # of the layers of stacks around the present call

    def intercept(call, arguments, keywords, context):
        module = context.module
        if context.method_name == "added" and method.added:
            path = normal_path("/".join(module.path))
            return method.added(Layer(module, path, call, arguments, keywords, None))
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        if _IN_STACK.fullmatch(module.name or "") and len(arguments) > 1:
            indices.append(arguments[1])
            try:
                return call(*arguments, **keywords)
            finally:
                indices.pop()
        path = normal_path("/".join(module.path))

        def run(*changed, **named):
            return call(*(changed or arguments), **{**keywords, **named})

        if seen and module.is_initializing():
            _see(seen, module, path, arguments)
        key = None
        if rng is not None:
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            key = jax.random.fold_in(key, indices[-1]) if indices else key
        y = method.layer(Layer(module, path, run, arguments, keywords, key))
        if seen and module.is_initializing() and not module.path:
            axes = params_lib.logical_axes(module.variables["params"])
            is_leaf = lambda x: isinstance(x, tuple)
            for p, names in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_leaf):
                name = "/".join(k.key for k in p)
                seen.axes[normal_path(name)] = names[is_stacked(name) :]
        return y

    return nn.intercept_methods(intercept)


def _see(seen: Seen, module: nn.Module, path: str, arguments: tuple) -> None:
    seen.modules[path] = type(module)
    if isinstance(module, Dense):
        inputs = arguments[0].shape[-len(module.in_axes) :]
        seen.dense[path] = Sizes(math.prod(inputs), math.prod(module.features), len(inputs))


def check_regex(pattern: str, key: str = "peft.targets") -> None:
    """Raises UserError for a regular expression that is invalid."""
    try:
        re.compile(pattern)
    except re.error as e:
        raise UserError(f"{key}={pattern!r} is not a regular expression: {e}.") from e


def check_targets(pattern: str, paths: Collection[str], what: str) -> list[str]:
    """The paths that peft.targets matches. Raises UserError if there are none."""
    chosen = [path for path in paths if re.search(pattern, path)]
    if not chosen:
        raise UserError(
            f"peft.targets={pattern!r} matches no {what} of the model. It has: {some(paths)}."
        )
    return chosen


def some(paths: Collection[str]) -> str:
    """The first paths, for a message."""
    names = sorted(paths)
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN) or "none"


def normal_path(path: str) -> str:
    """A path of a parameter or layer that is the same for scan=True and scan=False: with 'layers'
    for any layer of a stack."""
    path = re.sub(r"(^|/)layers/block_\d+_of_\d+(?=/|$)", r"\1layers", path)
    return re.sub(r"(^|/)layer_\d+(?=/|$)", r"\1layers", path)


def is_stacked(path: str) -> bool:
    """Whether the first axis of the parameter at this path are the layers of a scanned stack."""
    return "layers" in path.split("/")


def axes_of(params: Any, seen: Seen) -> Any:
    """The tree of logical axis names of parameters that were seen; None where they are unknown."""

    def names(path, x):
        name = "/".join(k.key for k in path)
        lead = ("layers",) * is_stacked(name)
        own = seen.axes.get(normal_path(name), ())
        return (*lead, *own) if len(lead) + len(own) == x.ndim else (None,) * x.ndim

    return jax.tree_util.tree_map_with_path(names, params)


def stored_base(params: dict, dtype: str, seen: Seen) -> dict:
    """The tree in bfloat16, with kernels of dense layers in 8 or 4 bits if dtype is int8 or nf4;
    not those of output layers over a vocabulary, whose products are left to the loss."""

    def leaf(path, x):
        small = quantised_kernel(path, x) if dtype in quantised.KINDS else None
        return x.astype(jnp.bfloat16) if small is None else small

    def quantised_kernel(path, x) -> Quantised | None:
        *layer, name = "/".join(k.key for k in path).split("/")
        at = normal_path("/".join(layer))
        if name != "kernel" or at not in seen.dense or issubclass(seen.modules[at], Output):
            return None
        sizes = seen.dense[at]
        if dtype == "nf4" and sizes.inputs % 2:
            return None
        return quantised.quantise(x, dtype, sizes.n_axes, is_stacked("/".join(layer)))

    return jax.tree_util.tree_map_with_path(leaf, params)


def plain_base(params: dict) -> dict:
    """The tree in float32, as `merge` and exports need it."""
    is_leaf = lambda x: isinstance(x, Quantised)
    plain = lambda x: x.dequantised("float32") if is_leaf(x) else x.astype(jnp.float32)
    return jax.tree_util.tree_map(plain, params, is_leaf=is_leaf)


def parts(tree: dict, keep: Callable[[str], bool], prefix: str = "") -> dict:
    """The nested dict of the leaves whose path `keep` accepts; without empty dicts."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if inner := parts(value, keep, f"{prefix}{key}/"):
                out[key] = inner
        elif keep(prefix + key):
            out[key] = value
    return out


def joined(a: dict, b: dict) -> dict:
    """The nested dict of the leaves of both; those of b where both have one."""
    out = dict(a)
    for key, value in b.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = joined(out[key], value) if both else value
    return out


def nested(leaves: Mapping[str, Any]) -> dict:
    """{path: leaf} as a nested dict."""
    tree: dict = {}
    for name, x in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = x
    return tree


def layers_with(params: dict, name: str) -> list[str]:
    """The paths of the layers that have a parameter of this name, such as 'lora_a/kernel'."""
    return [n.removesuffix(f"/{name}") for n in named_leaves(params) if n.endswith(f"/{name}")]
