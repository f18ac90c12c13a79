"""Bytes that the operations of a compiled program read from and write to HBM.

What only gives data another name moves nothing: bitcasts, elements of tuples, buffers that are
allocated or joined, the ends of asynchronous operations. Collectives do not count either: their
bytes are communication. A fusion reads the slices that it takes of an operand, also after it has
given the operand another form or computed something of each element; and it writes the updates that
it makes in place. Indices of slices are not counted: they are in scalar memory.
"""

from collections.abc import Iterable
from typing import NamedTuple

from bigjax.plan.hlo import (
    ASIDE,
    Array,
    Computation,
    Module,
    Op,
    called,
    parameter_number,
    remembered,
)

# Loops, calls and branches move what the operations within them do.
_MOVES_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
    *("add-dependency", "domain", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional"),
}
_TARGETS_THAT_MOVE_NOTHING = {"AllocateBuffer", "ConcatBitcast"}
# The ends of a collective that is split over several fusions.
_TARGETS_OF_COLLECTIVES = {"AsyncCollectiveStart", "AsyncCollectiveDone"}
_FORMS = {"slice", "dynamic-slice", "reshape", "transpose", "copy", "convert"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_SAME_DATA = {"bitcast", "opt-barrier", "add-dependency", "domain"}
# Of these an element of the result needs at most one element of each operand.
_POINTWISE = {
    *(_FORMS - {"slice", "dynamic-slice"}),
    *("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "power"),
    *("negate", "abs", "sign", "floor", "ceil", "round-nearest-even", "round-nearest-afz"),
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "erf"),
    *("sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "atan2", "is-finite", "reduce-precision"),
    *("compare", "select", "clamp", "and", "or", "xor", "not", "popcnt", "count-leading-zeros"),
    *("shift-left", "shift-right-arithmetic", "shift-right-logical", "bitcast-convert"),
    *("broadcast", "pad", "reverse", "concatenate", "dynamic-update-slice"),
}


class _Source(NamedTuple):
    """The data that a value in a fusion is, if it is not computed there.

    parameter: whose data it is; None: received by a collective. written: bytes that were updated in
    place.
    """

    parameter: int | None
    written: float = 0.0


class Traffic:
    """Counts in a hlo.Module."""

    def __init__(self, module: Module) -> None:
        self.computations = module.computations

    def bytes(self, c: Computation, op: Op) -> float:
        """Bytes that one operation of a computation moves."""
        if op.opcode in _MOVES_NOTHING or op.opcode.endswith(("-done", "-update")):
            return 0.0
        if _is_collective(op) or op.target in _TARGETS_THAT_MOVE_NOTHING:
            return 0.0
        if op.opcode in ASIDE:
            inner = [self.computations[name] for name in called(op)]
            return sum(self.bytes(x, each) for x in inner for each in x.ops.values())
        if op.opcode == "fusion":
            return self._fusion(c, op)
        inputs, results = c.inputs(op), _results(c, op)
        read = sum(
            self._read_by(op, inputs, j, results) for j, x in enumerate(inputs) if _hbm(x.arrays)
        )
        updates = _updates(op, inputs)
        written = [_part(a, part) for a, part in zip(results, updates) if not a.on_chip]
        return read + (sum(written) if updates else _hbm(results))

    def _fusion(self, c: Computation, op: Op) -> float:
        inner, inputs = self.computations[called(op)[0]], c.inputs(op)
        total, copied = 0.0, set()
        aliased = "output_to_operand_aliasing=" in op.text
        for (result, element), array in zip(_elements(inner, inner.root), op.arrays):
            source = self._source(inner, result, element)
            if source is None:
                total += _hbm([array])
                continue
            i = source.parameter
            renamed = source.written or aliased or len(op.arrays) > 1
            if i is None or (renamed and inputs[i].arrays[0].on_chip == array.on_chip):
                total += 0.0 if array.on_chip else min(source.written, array.bytes)
            else:
                copied.add(i)
                total += _hbm([array])
        for i, x in enumerate(inputs):
            if whole := _hbm(x.arrays):
                total += whole if i in copied else self._read(inner, i)
        return total

    def _source(self, c: Computation, op: Op, element: int = 0) -> _Source | None:
        """The source of an element of an operation's result; None if it is computed."""
        inputs = c.inputs(op)
        if op.opcode == "parameter":
            return _Source(parameter_number(op))
        if _is_collective(op):
            return _Source(None)
        if op.opcode in _SAME_DATA:
            return self._source(c, inputs[0], element)
        if op.opcode == "get-tuple-element":
            return self._source(c, *_elements(c, inputs[0])[int(op.attribute("index"))])
        if op.opcode in _FORMS:  # a device's part of what was received, or another form of it
            source = self._source(c, inputs[0])
            return source if source and source.parameter is None else None
        if updates := _updates(op, inputs):
            source = self._source(c, inputs[element])
            return _updated(source, _part(op.arrays[element], updates[element]))
        if op.opcode == "fusion":
            inner = self.computations[called(op)[0]]
            source = self._source(inner, *_elements(inner, inner.root)[element])
            if source is None or source.parameter is None:
                return source
            return _updated(self._source(c, inputs[source.parameter]), source.written)
        return None

    @remembered
    def _work(self, name: str) -> set[str]:
        """The operations of a fusion that its results are made of; not those that only a collective
        reads."""
        c = self.computations[name]
        left = [c.root]
        names: set[str] = set()
        while left:
            op = left.pop()
            if op.name not in names and not _is_collective(op):
                names.add(op.name)
                left += c.inputs(op)
        return names

    @remembered
    def _parameters(self, name: str) -> dict[str, int]:
        """{operation of a fusion: the parameter whose data it is}."""
        c = self.computations[name]
        sources = {op.name: self._source(c, op) for op in c.ops.values() if len(op.arrays) == 1}
        return {k: s.parameter for k, s in sources.items() if s and s.parameter is not None}

    def _read(self, c: Computation, parameter: int) -> float:
        """Bytes of a parameter that a fusion reads: all, or slices of it."""
        of, work, total, whole = self._parameters(c.name), self._work(c.name), 0.0, 0.0
        needed = self._needed(c.name)
        for op in c.ops.values():
            if op.opcode == "parameter" and parameter_number(op) == parameter:
                whole = _bytes(op.arrays)
            inputs = c.inputs(op) if op.name in work else []
            for j in (j for j, x in enumerate(inputs) if of.get(x.name) == parameter):
                read = self._read_by(op, inputs, j, op.arrays)
                if op.opcode in _POINTWISE or op.opcode in _SLICES and j == 0:
                    read = min(read, _share(inputs[j].arrays[0], needed[op.name]))
                total += read
        return min(total, whole)

    @remembered
    def _needed(self, name: str) -> dict[str, float]:
        """{operation of a fusion: elements of its result that the fusion needs}: fewer than all, if
        only slices of them are used."""
        c = self.computations[name]
        needed = {op.name: float(op.root) * _size(op.arrays) for op in c.ops.values()}
        for op in reversed(c.ops.values()):  # those that use a result follow it
            inputs = c.inputs(op)
            for j, x in enumerate(inputs):
                more = self._taken(op, inputs, j, needed[op.name])
                needed[x.name] = min(needed[x.name] + more, _size(x.arrays))
        return needed

    def _taken(self, op: Op, inputs: list[Op], j: int, needed: float) -> float:
        """Elements of its input j that an operation needs for so many elements of its result."""
        if op.opcode in _POINTWISE | _SAME_DATA or (op.opcode in _SLICES and j == 0):
            return needed
        size = _size(inputs[j].arrays)
        if op.opcode == "fusion" and (n_bytes := _bytes(inputs[j].arrays)):
            # One that only gives it another name reads nothing of it.
            return self._read(self.computations[called(op)[0]], j) / n_bytes * size or size
        return size

    def _read_by(self, op: Op, inputs: list[Op], j: int, results: Iterable[Array]) -> float:
        """Bytes that an operation reads of its input j."""
        opcode = op.opcode.removesuffix("-start")
        if opcode in _SAME_DATA | {"tuple", "get-tuple-element"}:
            return 0.0
        if opcode in _SLICES and j == 0:
            return sum(_part(inputs[0].arrays[0], a) for a in results)
        if opcode == "dynamic-slice" or (opcode == "dynamic-update-slice" and j != 1):
            return 0.0
        if opcode == "scatter" and j < len(updates := _updates(op, inputs)):
            combiner = self.computations.get(op.attribute("to_apply") or "")
            replaced = combiner is not None and combiner.root.opcode == "parameter"
            return 0.0 if replaced else _part(inputs[j].arrays[0], updates[j])
        if opcode == "fusion":
            return self._read(self.computations[called(op)[0]], j)
        return _bytes(inputs[j].arrays)


def _is_collective(op: Op) -> bool:
    return op.collective is not None or op.target in _TARGETS_OF_COLLECTIVES


def _updates(op: Op, inputs: list[Op]) -> list[Array]:
    """What an operation writes into its first inputs, in place; empty for others."""
    if op.opcode.startswith("dynamic-update-slice"):
        return [inputs[1].arrays[0]]
    if op.opcode == "scatter":  # into n arrays: these, indices, n updates
        return [x.arrays[0] for x in inputs[len(inputs) // 2 + 1 :]]
    return []


def _updated(source: _Source | None, written: float) -> _Source | None:
    """None for an array that the fusion computes: it is written completely."""
    return source and source._replace(written=source.written + written)


def _results(c: Computation, op: Op) -> list[Array]:
    """The arrays that an operation writes. The tuple of a -start also has its operands, and what
    identifies the operation."""
    if not op.opcode.endswith("-start"):
        return [*op.arrays]
    left = [*op.arrays]
    for a in (a for x in c.inputs(op) for a in x.arrays):
        if a in left:
            left.remove(a)
    return left[:1]


def _elements(c: Computation, op: Op) -> list[tuple[Op, int]]:
    """(operation, element of its result) of each array of a result, through tuples."""
    if op.opcode == "tuple":
        return [pair for x in c.inputs(op) for pair in _elements(c, x)]
    return [(op, i) for i in range(len(op.arrays))]


def _part(whole: Array, part: Array) -> float:
    """Bytes of a part of an array. The compiler may write the part with another type."""
    return min(part.size, whole.size) * (whole.bytes / max(whole.size, 1))


def _share(whole: Array, elements: float) -> float:
    """Bytes of so many elements of an array."""
    return min(elements / max(whole.size, 1), 1.0) * whole.bytes


def _size(arrays: Iterable[Array]) -> float:
    return float(sum(a.size for a in arrays))


def _bytes(arrays: Iterable[Array]) -> float:
    return sum(a.bytes for a in arrays)


def _hbm(arrays: Iterable[Array]) -> float:
    return _bytes(a for a in arrays if not a.on_chip)
