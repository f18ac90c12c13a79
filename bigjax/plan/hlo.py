"""Compiled HLO as text, read into computations of operations, with FLOPs, bytes and loop counts.

XLA's own cost analysis counts the body of a loop once; here it is multiplied out. The text is what
`jax.stages.Compiled.as_text()` gives after scheduling.
"""

import dataclasses
import functools
import itertools
import math
import re

DTYPE_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "f8e4m3": 1,
}
ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # a layout in other memory than HBM
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# A kernel's text has lines that begin with }}. tpu7x names the core that a computation runs on.
_END = re.compile(r'^\}(, execution_thread="\w+")?$')
_NAME = re.compile(r"^  (ROOT )?%([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in a TPU's vector or scalar memory

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.size * DTYPE_BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Op:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result, a tuple's flattened
    operands: tuple[str, ...]
    text: str  # what follows the operands
    root: bool

    def attribute(self, name: str) -> str | None:
        """The word or computation that follows NAME=, without its %."""
        found = re.search(rf"[ ,(]{name}=%?([\w.\-]+)", self.text)
        return found and found[1]

    @property
    def cycles(self) -> int:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    ops: dict[str, Op]

    @property
    def root(self) -> Op:
        return next(op for op in self.ops.values() if op.root)

    def inputs(self, op: Op) -> list[Op]:
        return [self.ops[name] for name in op.operands if name in self.ops]


class Module:
    """Attributes: `computations` by name; `entry`, the name of the one that runs."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        name, lines = None, []
        for line in text.splitlines():
            head = _COMPUTATION.match(line)
            if name is None and head:
                name, lines = head[2], []
                self.entry = name if head[1] else self.entry
            elif name is not None and _END.match(line):
                self.computations[name] = Computation(name, _ops(lines))
                name = None
            elif name is not None:
                lines.append(line)
        if not self.entry:
            raise ValueError("This is no HLO module: it has no ENTRY computation.")

    def trips(self, loop: Op) -> int:
        """How often a while loop runs: as GPUs' programs say, else it counts from a constant to a
        constant. 1 if unknown."""
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
        if told:
            return int(told[1])
        found = self._compared(self.computations[loop.attribute("condition")])
        if not found:
            return 1
        index, limit, direction = found
        step = self._step(self.computations[loop.attribute("body")], index)
        start = self._start(loop, index)
        if not step or start is None:
            return 1
        n = (limit - start) / step
        return max(1, math.floor(n) + 1 if direction == "LE" else math.ceil(n))

    def _compared(self, c: Computation) -> tuple[int, int, str] | None:
        """(index in the loop's tuple, limit, direction) of the compare that ends a condition."""

        def known(op: Op) -> int | str | None:
            """A constant as int, an element of the tuple as 'INDEX', else None."""
            while op.opcode in ("copy", "bitcast", "convert"):
                op = c.inputs(op)[0]
            if op.opcode == "parameter":
                return given[_parameter(op)]
            return op.attribute("index") if op.opcode == "get-tuple-element" else _constant(op)

        op, given = c.root, [None]  # what the computation's parameters are
        while op.opcode == "fusion":
            given = [known(x) for x in c.inputs(op)]
            c = self.computations[op.attribute("calls")]
            op = c.root
        if op.opcode != "compare":
            return None
        a, b = map(known, c.inputs(op))
        direction = op.attribute("direction")
        if isinstance(a, str) and isinstance(b, int) and direction in ("LT", "LE", "NE"):
            return int(a), b, direction
        return None

    def _step(self, body: Computation, index: int) -> int | None:
        """How much one trip adds to an element of the tuple."""
        root = body.root
        if root.opcode != "tuple":
            return None
        total, op, c = 0, body.inputs(root)[index], body
        for _ in range(64):
            if op.opcode == "get-tuple-element":
                source = c.inputs(op)[0]
                if source.opcode == "parameter":
                    return total or None
                return None
            if op.opcode in ("copy", "bitcast"):
                op = c.inputs(op)[0]
            elif op.opcode == "add":
                inputs = c.inputs(op)
                added = [_constant(x) for x in inputs]
                known = [x for x in added if x is not None]
                if len(known) != 1:
                    return None
                total += known[0]
                op = inputs[added.index(None)]
            elif op.opcode == "fusion":
                inner = self.computations[op.attribute("calls")]
                more = self._added(inner)
                if more is None:
                    return None
                place, amount = more
                total += amount
                op = c.inputs(op)[place]
            else:
                return None
        return None

    @staticmethod
    def _added(c: Computation) -> tuple[int, int] | None:
        """(parameter, constant) of a fused computation that only adds one to the other."""
        root = c.root
        if root.opcode != "add":
            return None
        inputs = c.inputs(root)
        amounts = [_constant(x) for x in inputs]
        places = [_parameter(x) if x.opcode == "parameter" else None for x in inputs]
        for place, amount in itertools.product(places, amounts):
            if place is not None and amount is not None:
                return place, amount
        return None

    def _start(self, loop: Op, index: int) -> int | None:
        """What an element of the tuple is at first; 0 if it is no constant in sight."""
        for c in self.computations.values():
            if c.ops.get(loop.name) is loop:
                first = c.inputs(loop)[0]
                if first.opcode != "tuple":
                    return 0
                op = c.inputs(first)[index]
                while op.opcode in ("copy", "bitcast"):
                    op = c.inputs(op)[0]
                return _constant(op) or 0
        return None

    @functools.cache
    def flops(self, name: str) -> float:
        """Of all matrix products in a computation, once through it; with what it calls."""
        c = self.computations[name]
        return sum(self.op_flops(c, op) for op in c.ops.values())

    def op_flops(self, c: Computation, op: Op) -> float:
        """Of one operation: 2 a multiplication that is added up. A loop's body counts each trip."""
        if op.opcode == "convolution":
            return _convolution_flops(op, *c.inputs(op))
        if op.opcode == "dot" or 'custom_call_target="__cublas$' in op.text:
            return _dot_flops(op, c.inputs(op)[0])
        if op.opcode == "while":
            return self.trips(op) * self.flops(op.attribute("body"))
        return sum(self.flops(name) for name in called(op))

    def hbm_bytes(self, c: Computation, op: Op) -> float:
        """What an operation reads from and writes to HBM."""
        if op.opcode in _FREE:
            return 0
        if op.opcode in ("copy-start", "slice-start"):  # (source, target) in either order
            moved = min(a.bytes for a in op.arrays[:2])
            return moved * sum(not a.on_chip for a in op.arrays[:2])
        inner = self.computations.get(op.attribute("calls") or "")
        if inner is None:
            if op.opcode == "dynamic-slice":
                return 2 * _hbm(op.arrays)
            if op.opcode == "dynamic-update-slice":
                return 2 * _hbm(c.inputs(op)[1].arrays)
            return _hbm(op.arrays) + sum(_hbm(x.arrays) for x in c.inputs(op))
        return self._fused_bytes(c, op, inner)

    def _fused_bytes(self, c: Computation, op: Op, inner: Computation) -> float:
        """A slice of a large operand counts as the slice, an update in place as the update."""
        total = 0.0
        updated: dict[int, float] = {}  # bytes of the updates, by the size of what they change
        for i, x in enumerate(c.inputs(op)):
            if not _hbm(x.arrays):
                continue
            read = self._read(inner, i)
            if read.updates:
                whole = x.arrays[0].size
                updated[whole] = updated.get(whole, 0) + 2 * read.updates
            total += _hbm(x.arrays) if read.whole else read.slices
        for array in op.arrays:
            if not array.on_chip:
                total += updated.pop(array.size) if array.size in updated else array.bytes
        return total

    def _read(self, c: Computation, index: int) -> "_Read":
        """What of its parameter a computation uses; looks into fusions within it."""
        name = next(
            (x.name for x in c.ops.values() if x.opcode == "parameter" and _parameter(x) == index),
            None,
        )
        names, read = [name], _Read()
        while names:
            name = names.pop()
            for user in (u for u in c.ops.values() if name in u.operands):
                if user.opcode in ("dynamic-slice", "slice"):
                    read.slices += user.arrays[0].bytes
                elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                    read.updates += c.inputs(user)[1].arrays[0].bytes
                elif user.opcode == "bitcast":
                    names.append(user.name)
                elif user.opcode == "fusion":
                    within = self.computations[user.attribute("calls")]
                    more = [self._read(within, i) for i, x in enumerate(user.operands) if x == name]
                    read.slices += sum(x.slices for x in more)
                    read.updates += sum(x.updates for x in more)
                    read.whole |= any(x.whole for x in more)
                else:
                    read.whole = True
        return read


@dataclasses.dataclass
class _Read:
    """Of one operand: bytes of the slices that are read, of the updates in place, or all of it."""

    slices: float = 0.0
    updates: float = 0.0
    whole: bool = False


# Operations that move nothing. A copy-start is what moves; its copy-done waits for it.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "copy-done",
    "after-all",
    "partition-id",
    "iota",
    "opt-barrier",
    "async-done",
    "async-update",
    "slice-done",
    "collective-permute-done",
    "all-gather-done",
    "all-reduce-done",
    "custom-call-done",
}


def called(op: Op) -> list[str]:
    """The computations that an operation runs once."""
    if op.opcode in ("fusion", "call", "async-start"):
        name = op.attribute("calls") or op.attribute("to_apply")
        return [name] if name else []
    if op.opcode == "conditional":
        found = re.search(r"branch_computations=\{([^}]*)\}", op.text)
        names = (
            _OPERAND.findall(found[1])
            if found
            else [op.attribute("true_computation"), op.attribute("false_computation")]
        )
        return [x for x in names if x]
    return []


def _hbm(arrays: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in arrays if not a.on_chip)


def _ops(lines: list[str]) -> dict[str, Op]:
    joined: list[str] = []
    for line in lines:  # the text of a kernel has line ends in it
        if _NAME.match(line) or not joined:
            joined.append(line)
        else:
            joined[-1] += "\n" + line
    return {op.name: op for op in map(_op, joined) if op}


def _op(line: str) -> Op | None:
    head = _NAME.match(line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    arrays = tuple(
        Array(
            d,
            tuple(map(int, dims.split(","))) if dims else (),
            bool(layout and ON_CHIP.search(layout)),
        )
        for d, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", rest[:end]))
    )
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[end:opening].strip()
    operands = (
        (inside,)
        if opcode in ("parameter", "constant")
        else tuple(_OPERAND.findall(re.sub(r"/\*.*?\*/", "", inside)))
    )
    return Op(head[2], opcode, arrays, operands, rest[closing + 1 :], bool(head[1]))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"No closing bracket in {text[opening : opening + 80]!r}.")


def _constant(op: Op) -> int | None:
    if op.opcode != "constant" or not re.fullmatch(r"-?\d+", op.operands[0]):
        return None
    return int(op.operands[0])


def _parameter(op: Op) -> int:
    return int(op.operands[0])


def _dot_flops(op: Op, left: Op) -> float:
    """Also of a product by cuBLAS, which says the same in other words."""
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', op.text)
    dims = [int(i) for i in re.findall(r"\d+", found[1])] if found else []
    return 2.0 * op.arrays[0].size * math.prod(left.arrays[0].dims[i] for i in dims)


def _convolution_flops(op: Op, left: Op, right: Op) -> float:
    """Counts only pairs of an input and a kernel element that there are: a TPU writes a batched
    matrix product as a convolution with much padding and dilation."""
    a, k, o = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text).groups()
    size = lambda labels, dims, label: dims[labels.index(label)]
    window = {
        name: values.split("x")
        for name, values in re.findall(
            r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{(.*?)\}", op.text) or ["", ""])[1]
        )
    }
    pairs = 1
    spatial = sorted(x for x in o if x.isdigit())
    for d, label in enumerate(spatial):
        get = lambda name, default: int(window[name][d]) if name in window else default
        low = int(window["pad"][d].split("_")[0]) if "pad" in window else 0
        pairs *= _pairs(
            size(a, left.arrays[0].dims, label),
            get("size", 1),
            size(o, op.arrays[0].dims, label),
            get("stride", 1),
            low,
            get("lhs_dilate", 1),
            get("rhs_dilate", 1),
        )
    return (
        2.0
        * pairs
        * (
            size(o, op.arrays[0].dims, "b")
            * size(o, op.arrays[0].dims, "f")
            * size(k, right.arrays[0].dims, "i")
        )
    )


@functools.cache
def _pairs(
    n: int, kernel: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Of one spatial dimension: how many (output, kernel element) meet an input element."""
    if stride == lhs_dilate == 1 and low == 0 and out + (kernel - 1) * rhs_dilate <= n:
        return out * kernel
    return sum(
        1
        for o in range(out)
        for k in range(kernel)
        if (at := o * stride + k * rhs_dilate - low) >= 0
        and at % lhs_dilate == 0
        and at // lhs_dilate < n
    )
