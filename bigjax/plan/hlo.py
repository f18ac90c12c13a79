"""Parses the text of compiled HLO, as `jax.stages.Compiled.as_text()` gives it, into computations
of operations."""

from collections.abc import Callable
import dataclasses
import functools
import math
import re

ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # in a layout: memory other than HBM
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Not every line that begins with }: a kernel's text has }}. On tpu7x the core's name follows.
_END = re.compile(r'^\}(, execution_thread="\w+")?$')
_NAME = re.compile(r"^  (ROOT )?%([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
ASIDE = ("async-start", "call-start")  # these run a computation beside others
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)


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
        """0 for tokens, which hold nothing."""
        bits = re.search(r"\d+", self.dtype)  # the first number: of f8e4m3fn 8
        return self.size * (int(bits[0]) / 8 if bits else float(self.dtype == "pred"))


@dataclasses.dataclass(frozen=True)
class Op:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result, a tuple's flattened
    operands: tuple[str, ...]
    text: str  # what follows the operands
    root: bool  # whether it is its computation's result

    def attribute(self, name: str) -> str | None:
        """The word or computation that follows NAME=, without its %."""
        match = re.search(rf"[ ,(]{name}=%?([\w.\-]+)", self.text)
        return match and match[1]

    @property
    def target(self) -> str:
        """Of a custom call: the name of what it calls."""
        match = _TARGET.search(self.text)
        return match[1] if match else ""

    @property
    def collective(self) -> str | None:
        """Which of COLLECTIVES it is or starts; None for another operation."""
        name = self.opcode.removesuffix("-start")
        return name if name in COLLECTIVES else None

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 without one."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(match[1]) if match else 0


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
    """computations: by name. entry: the name of the one that runs."""

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
            raise ValueError("This text is not an HLO module: it has no ENTRY computation.")


def remembered(method: Callable) -> Callable:
    """A method that computes its result once per name; it is forgotten with the instance, and the
    program that it holds."""

    @functools.wraps(method)
    def look_up(self, name: str):
        results = self.__dict__.setdefault(f"_results_of_{method.__name__}", {})
        if name not in results:
            results[name] = method(self, name)
        return results[name]

    return look_up


def called(op: Op) -> list[str]:
    """The computations that an operation runs once."""
    if op.opcode in ("fusion", "call", *ASIDE):
        name = op.attribute("calls") or op.attribute("to_apply")
        return [name] if name else []
    if op.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", op.text)
        names = (
            _OPERAND.findall(branches[1])
            if branches
            else [op.attribute("true_computation"), op.attribute("false_computation")]
        )
        return [x for x in names if x]
    return []


def _ops(lines: list[str]) -> dict[str, Op]:
    joined: list[str] = []
    for line in lines:  # the text of a kernel spans several
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
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode, result = rest[end:opening].strip(), re.sub(r"/\*.*?\*/", "", rest[:end])
    if opcode == "fusion-start":  # ((operands), results, context): a fusion whose end is waited for
        opcode, result = "fusion", result[_closing(result, 1) + 1 : result.rindex(",")]
    arrays = tuple(
        Array(
            d,
            tuple(map(int, dims.split(","))) if dims else (),
            bool(layout and ON_CHIP.search(layout)),
        )
        for d, dims, layout in _ARRAY.findall(result)
    )
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


def constant(op: Op) -> int | None:
    """The value of an integer constant; None for any other operation."""
    if op.opcode != "constant" or not re.fullmatch(r"-?\d+", op.operands[0]):
        return None
    return int(op.operands[0])


def parameter_number(op: Op) -> int:
    """Which parameter of its computation an operation is."""
    return int(op.operands[0])
