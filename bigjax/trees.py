"""Names and sizes of pytrees of arrays. A leaf: every room may import it."""

import math
import re

import jax

TURN = re.compile(r"block_(\d+)_of_(\d+)")  # of a stack whose layers take turns


def path_name(path) -> str:
    """'stack/layers/mlp/up/kernel' from a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree) -> dict:
    """{path name: leaf}, in tree order."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def layer_names(name: str, x) -> list[str]:
    """The paths of a leaf's layers: 'stack/layer_0/...', 'stack/layer_1/...' for 'stack/layers/...'
    of a scanned stack, whose first axis is the layers; [name] for any other leaf.

    'stack/layers/block_1_of_2/...' holds every second layer, from the second on.
    """
    parts = name.split("/")
    if "layers" not in parts:
        return [name]
    at = parts.index("layers")
    rest, kind, kinds = parts[at + 1 :], 0, 1
    if rest and (turn := TURN.fullmatch(rest[0])):
        rest, kind, kinds = rest[1:], int(turn[1]), int(turn[2])
    return ["/".join([*parts[:at], f"layer_{kind + i * kinds}", *rest]) for i in range(x.shape[0])]


def layer_places(named: dict) -> dict[str, tuple[str, int | None]]:
    """{path of a layer: (path of its leaf, its index in it, None if it is the whole leaf)} of all
    leaves by name: where `layer_names` are to be found."""
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
    pick = lambda want: jax.tree_util.tree_map(lambda x, m: x if m == want else None, tree, mask)
    return pick(True), pick(False)


def merge(tree, other):
    """The tree with the leaves of the other where it has None: what `partition` took apart."""
    return jax.tree_util.tree_map(
        lambda a, b: b if a is None else a, tree, other, is_leaf=lambda x: x is None
    )
