"""Names and sizes of pytrees of arrays. Every package may import this module."""

import math
import re

import jax

# Names the parameters of one kind of layer in a stack whose kinds of layers alternate.
TURN = re.compile(r"block_(\d+)_of_(\d+)")


def path_name(path) -> str:
    """'stack/layers/mlp/up/kernel' from a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree) -> dict:
    """{path name: leaf}, in tree order."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def layer_names(name: str, x) -> list[str]:
    """The paths of a leaf's layers: 'stack/layer_0/...', 'stack/layer_1/...' for 'stack/layers/...'
    of a scanned stack, whose first axis is the layers; [name] for any other leaf.

    'stack/layers/block_1_of_2/...' holds every second layer, starting with the second; layers after
    the last complete period have names as in the unrolled form.
    """
    parts = name.split("/")
    if "layers" not in parts:
        return [name]
    at = parts.index("layers")
    rest, kind, kinds = parts[at + 1 :], 0, 1
    if rest and (turn := TURN.fullmatch(rest[0])):
        rest, kind, kinds = rest[1:], int(turn[1]), int(turn[2])
    return ["/".join([*parts[:at], f"layer_{kind + i * kinds}", *rest]) for i in range(x.shape[0])]


def layer_locations(named: dict) -> dict[str, tuple[str, int | None]]:
    """{path of a layer: (path of its leaf, index of the layer in it, None for a complete leaf)}.

    named: {path: leaf}; the layers are those of `layer_names`.
    """
    return {
        n: (name, None if n == name else i)
        for name, x in named.items()
        for i, n in enumerate(layer_names(name, x))
    }


def count(tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(x.shape) for x in jax.tree_util.tree_leaves(tree))


def partition(tree, mask) -> tuple:
    """(the tree with None where the mask is False, the tree with None where it is True).

    mask: a tree of bools, or one bool for all.
    """
    if isinstance(mask, bool):
        mask = jax.tree_util.tree_map(lambda _: mask, tree)
    where = lambda value: jax.tree_util.tree_map(lambda x, m: x if m == value else None, tree, mask)
    return where(True), where(False)


def merge(tree, other):
    """The tree with the other's leaves where it has None: the inverse of `partition`."""
    return jax.tree_util.tree_map(
        lambda a, b: b if a is None else a, tree, other, is_leaf=lambda x: x is None
    )
