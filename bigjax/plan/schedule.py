"""Where the time of a compiled step goes: by layer, part of the step and kind of operation.

Layers are named by the paths that jax writes into the program: `stack/attention/query` are the
queries of all layers of the stack. What the compiler adds without a name belongs to the operation
that it prepares or uses.
"""

from collections.abc import Iterable, Sequence
import re
from typing import NamedTuple

from bigjax.layers.kernels.common import SCOPE, SCORES
from bigjax.plan.hlo import ASIDE, Computation, Module, Op, called, remembered

KINDS = ("matrix product", "kernel", "elementwise", "copy", "collective")
PARTS = ("forward", "backward", "recomputed", "update")
LARGEST = 10
# Names in a path that jax and XLA add, and those of the layers of a stack, which count together.
_ADDED = re.compile(
    r"while|body|cond|scan|closed_call|checkpoint|rematted_computation|shard_map|branch_\d+_fun|"
    r"custom_[jv]vp_call|core_call|pjit|layers?(_\d+)?|splash_mha_\w+|whole_\w+|"
    + SCOPE
    + r"\d+|"
    + SCORES
    + r"\d+"
)
_NEAR = 24  # operations among which one with a name is looked for
_WITH_PARTS = ("fusion", *ASIDE)
_PRODUCTS = ("convolution", "dot")
_NAME = re.compile(r"[A-Za-z_]\w*")
_COPIES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy", "transpose"),
    *("reshape", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad"),
    *("broadcast", "fusion", "add-dependency", "opt-barrier", "bitcast-convert", "reverse"),
}


class Entry(NamedTuple):
    """Operations of one kind in one layer and part of the step.

    layer: a path, or 'loss', 'optimizer' or 'compiler'. part: one of PARTS. kind: one of KINDS;
    elementwise has all others: norms, reductions, lookups. seconds: per step. bound: what limits
    most of them: 'FLOPs', 'HBM', 'cycles' (the compiler's estimate), 'links' or 'network'.
    """

    layer: str
    part: str
    kind: str
    seconds: float
    bound: str


class Schedule:
    """Adds up the seconds of a hlo.Module's operations."""

    def __init__(self, module: Module) -> None:
        self._computations = module.computations
        self._seconds: dict[tuple[str, str, str], dict[str, float]] = {}

    def add(
        self,
        c: Computation,
        op: Op,
        kind: str,
        seconds: float,
        bound: str,
        caller: tuple[Computation, Op] | None = None,
    ) -> None:
        """caller: what runs the operation's computation, and names it if it has no name."""
        if seconds:
            c, op = caller if caller and not self._path(op) else (c, op)
            bounds = self._seconds.setdefault((*self._place(c, op), kind), {})
            bounds[bound] = bounds.get(bound, 0.0) + seconds

    def update(self, other: "Schedule") -> None:
        """Adds the seconds of another schedule of the same module."""
        for key, more in other._seconds.items():
            bounds = self._seconds.setdefault(key, {})
            for bound, seconds in more.items():
                bounds[bound] = bounds.get(bound, 0.0) + seconds

    def entries(self) -> tuple[Entry, ...]:
        """Those that take the most time first."""
        entries = [
            Entry(*key, sum(bounds.values()), max(bounds, key=lambda name: bounds[name]))
            for key, bounds in self._seconds.items()
        ]
        return tuple(sorted(entries, key=lambda e: (-e.seconds, *e[:3])))

    def is_copy(self, op: Op) -> bool:
        """Whether an operation only moves data."""
        if op.opcode == "fusion":
            return self._only_copies(called(op)[0])
        return op.opcode.removesuffix("-start") in _COPIES

    @remembered
    def _only_copies(self, name: str) -> bool:
        ops = self._computations[name].ops.values()
        return all(self.is_copy(op) for op in ops)

    def _place(self, c: Computation, op: Op) -> tuple[str, str]:
        """(layer, part) of an operation, or of the nearest one that has a name: first of those that
        use its result, then of those that it uses."""
        for neighbours in (self._users(c.name), {k: v.operands for k, v in c.ops.items()}):
            near = [op.name]
            for name in near:
                if path := self._path(c.ops[name]):
                    return place(path)
                if len(near) < _NEAR and c.ops[name].opcode != "tuple":
                    near += (x for x in neighbours.get(name, ()) if x in c.ops and x not in near)
        return "compiler", "update"

    @remembered
    def _users(self, name: str) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for op in self._computations[name].ops.values():
            for operand in op.operands:
                users.setdefault(operand, []).append(op.name)
        return users

    def _path(self, op: Op) -> str | None:
        """The path of an operation; of a fusion, that of its matrix product, if it has one."""
        parts = [self._paths(name) for name in called(op) if op.opcode in _WITH_PARTS]
        product, last = parts[0] if parts else (None, None)
        return product or _own_path(op) or last

    @remembered
    def _paths(self, name: str) -> tuple[str | None, str | None]:
        """The paths of a matrix product in a fusion, and of the last operation that has one."""
        product = last = None
        for op in self._computations[name].ops.values():
            if op.opcode in _WITH_PARTS:
                inner, path = self._paths(called(op)[0])
                product = inner or product
            else:
                path = _own_path(op)
                product = path if path and op.opcode in _PRODUCTS else product
            last = path or last
        return product, last


def place(path: str) -> tuple[str, str]:
    """(layer, part) of an operation by its path, such as ('stack/attention/query', 'backward') for
    jit(step)/transpose(jvp(Model))/stack/while/body/layers/attention/query/dot_general."""
    *parts, _ = path.split(";")[0].split("/")
    layer: list[str] = []
    for name, dot, method in (x.partition(".") for x in parts):
        function = dot and (name[:1].isupper() or "<" in method)  # otherwise it is MODULE.METHOD
        known = _NAME.fullmatch(name) and not _ADDED.fullmatch(name)
        if known and not function and layer[-1:] != [name]:
            layer.append(name)
    differentiated = [x for x in parts if x.startswith(("jvp(", "transpose("))]
    if "rematted_computation" in parts:
        part = "recomputed"
    elif "checkpoint" in parts or any(x.startswith("transpose(") for x in differentiated):
        part = "backward"
    else:
        part = "forward" if layer or differentiated else "update"
    outside = "optimizer" if part == "update" else "loss"
    if differentiated and not differentiated[0].rstrip(")").endswith("("):  # jvp(Model)
        outside = "model"
    return "/".join(layer) or outside, part


def lines(entries: Sequence[Entry]) -> list[str]:
    """For people: the share of each kind, and the largest entries with what bounds them."""
    total = sum(e.seconds for e in entries)
    shares = (f"{kind} {s / total:.1%}" for kind, s in by_kind(entries).items() if s)
    largest = [(f"{e.layer}, {e.part}", e) for e in entries[:LARGEST]]
    width = max(len(title) for title, _ in largest) + 4
    row = lambda title, *cells: f"{title:<{width}}{{:<16}}{{:>9}}{{:>8}}  {{}}".format(*cells)
    return [
        f"by kind        {', '.join(shares)}",
        row("largest", "kind", "seconds", "share", "bound"),
        *(
            row(f"  {title}", e.kind, duration(e.seconds), f"{e.seconds / total:.1%}", e.bound)
            for title, e in largest
        ),
    ]


def numbers(entries: Sequence[Entry]) -> list[dict]:
    """The largest entries for programs. share: of the seconds of all work and communication."""
    total = sum(e.seconds for e in entries)
    return [{**e._asdict(), "share": e.seconds / total} for e in entries[:LARGEST]]


def duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def by_kind(entries: Iterable[Entry]) -> dict[str, float]:
    """Seconds per step of each kind, those that take the most time first."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for e in entries:
        seconds[e.kind] += e.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _own_path(op: Op) -> str | None:
    """Arguments of the step have names such as state.params['embed'], which are no paths."""
    match = re.search(r'op_name="([^"]*/[^"]*)"', op.text)
    return match[1] if match and "[" not in match[1] else None
