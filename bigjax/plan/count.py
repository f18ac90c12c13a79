"""FLOPs and loop counts of a compiled program.

XLA's own cost analysis counts the body of a loop once; this multiplies by how often it runs.
"""

import functools
import itertools
import math
import re

from bigjax.plan.hlo import Computation, Module, Op, called, constant, parameter_number, remembered


class Counter:
    """Counts in a hlo.Module."""

    def __init__(self, module: Module) -> None:
        self.computations = module.computations

    def trips(self, loop: Op) -> int | None:
        """How often a while loop runs; None if the program does not say.

        GPU programs state it; elsewhere the loop counts from one constant to another.
        """
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
        if stated:
            return int(stated[1])
        compared = self._compared(self.computations[loop.attribute("condition")])
        if not compared:
            return None
        index, limit, direction = compared
        step = self._step(self.computations[loop.attribute("body")], index)
        start = self._start(loop, index)
        if not step or start is None:
            return None
        n = (limit - start) / step
        return max(1, math.floor(n) + 1 if direction in ("LE", "GE") else math.ceil(n))

    def _compared(self, c: Computation) -> tuple[int, int, str] | None:
        """(index in the loop's tuple, limit, direction) of the compare that ends a condition."""

        def known(op: Op) -> int | str | None:
            """A constant as int, an element of the tuple as its index in a str, else None."""
            while op.opcode in ("copy", "bitcast", "convert"):
                op = c.inputs(op)[0]
            if op.opcode == "parameter":
                return arguments[parameter_number(op)]
            return op.attribute("index") if op.opcode == "get-tuple-element" else constant(op)

        op, arguments = c.root, [None]  # of the computation
        while op.opcode == "fusion":
            arguments = [known(x) for x in c.inputs(op)]
            c = self.computations[op.attribute("calls")]
            op = c.root
        if op.opcode != "compare":
            return None
        a, b = map(known, c.inputs(op))
        direction = op.attribute("direction")
        if isinstance(a, str) and isinstance(b, int) and direction != "EQ":
            return int(a), b, direction
        return None

    def _step(self, body: Computation, index: int) -> int | None:
        """How much one iteration adds to an element of the loop's tuple."""
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
                added = [constant(x) for x in inputs]
                known = [x for x in added if x is not None]
                if len(known) != 1:
                    return None
                total += known[0]
                op = inputs[added.index(None)]
            elif op.opcode == "fusion":
                inner = self.computations[op.attribute("calls")]
                added_in_fusion = self._added(inner)
                if added_in_fusion is None:
                    return None
                parameter, amount = added_in_fusion
                total += amount
                op = c.inputs(op)[parameter]
            else:
                return None
        return None

    @staticmethod
    def _added(c: Computation) -> tuple[int, int] | None:
        """(parameter's number, constant) of a fused computation that only adds these two."""
        root = c.root
        if root.opcode != "add":
            return None
        inputs = c.inputs(root)
        amounts = [constant(x) for x in inputs]
        numbers = [parameter_number(x) if x.opcode == "parameter" else None for x in inputs]
        for number, amount in itertools.product(numbers, amounts):
            if number is not None and amount is not None:
                return number, amount
        return None

    def _start(self, loop: Op, index: int) -> int | None:
        """The initial value of an element of the tuple; 0 if it is not a visible constant."""
        for c in self.computations.values():
            if c.ops.get(loop.name) is loop:
                first = c.inputs(loop)[0]
                if first.opcode != "tuple":
                    return 0
                op = c.inputs(first)[index]
                while op.opcode in ("copy", "bitcast"):
                    op = c.inputs(op)[0]
                return constant(op) or 0
        return None

    @remembered
    def flops(self, name: str) -> float:
        """FLOPs of the matrix products in a computation and in those that it calls."""
        c = self.computations[name]
        return sum(self.op_flops(c, op) for op in c.ops.values())

    def op_flops(self, c: Computation, op: Op) -> float:
        """FLOPs of one operation: 2 per multiply-add. A loop's body counts once per iteration,
        that of an unknown number once."""
        if op.opcode == "convolution":
            return _convolution_flops(op, *c.inputs(op))
        if op.opcode == "dot" or 'custom_call_target="__cublas$' in op.text:
            return _dot_flops(op, c.inputs(op)[0])
        if op.opcode == "while":
            return (self.trips(op) or 1) * self.flops(op.attribute("body"))
        return sum(self.flops(name) for name in called(op))


def _dot_flops(op: Op, left: Op) -> float:
    """FLOPs of a matrix product, by XLA or by cuBLAS, which write its dimensions differently."""
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', op.text)
    dims = [int(i) for i in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2.0 * op.arrays[0].size * math.prod(left.arrays[0].dims[i] for i in dims)


def _convolution_flops(op: Op, left: Op, right: Op) -> float:
    """FLOPs of a convolution. Only products of real elements count: a TPU's compiler writes a
    batched matrix product as a convolution with much padding and dilation."""
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
    """How many pairs (output, kernel element) of one spatial dimension meet an input element."""
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
