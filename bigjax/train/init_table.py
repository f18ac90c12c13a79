"""The table of parameters that init_from loaded, changed, drew anew and left out."""

from collections import defaultdict
import re
from typing import Any

import numpy as np

from bigjax.trees import layer_names


def table(source: Any, named: dict, loaded: set, new: list, adapted: dict) -> str:
    """One line per module, all layers in one.

    source: an init_from.Source. named: this model's arrays by path. loaded, new: names of
    parameters. adapted: {name: models.Adapted} of those that were changed.
    """
    theirs = {n: int(np.prod(s)) for n, s in source.shapes.items()}
    own = {}
    for name, x in named.items():
        names = layer_names(name, x)
        own.update({n: x.size // len(names) for n in names})
    rows = []
    for n, a in adapted.items():
        before, after = (" x ".join(map(str, shape)) for shape in (source.shapes[n], a.shape))
        rows.append(("resized", f"{n}, {before} to {after}", 1, own[n]))
    for status, names, sizes in (
        ("loaded", loaded - {*adapted}, own),
        ("new", new, own),
        ("unused", [n for n in source.shapes if n not in loaded], theirs),
    ):
        by_module, layers = defaultdict(list), defaultdict(set)
        for n in names:
            layer = re.match(r"(.+?)/layer_(\d+)/", n)
            module = layer[1] if layer else n.split("/")[0]
            by_module[module].append(n)
            if layer:
                layers[module].add(int(layer[2]))
        for module, members in sorted(by_module.items()):
            numbers = _ranges(sorted(layers[module]))
            label = f"{module}, layers {numbers}" if numbers else module
            rows.append((status, label, len(members), sum(sizes[n] for n in members)))
    lines = [f"{'':8}{'from ' + source.where:<44}{'arrays':>7}{'parameters':>15}"]
    lines += [f"{status:<8}{label:<44}{n:>7}{size:>15,}" for status, label, n, size in rows]
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """'0-3, 7'."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
