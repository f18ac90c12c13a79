"""What a compiled step costs on a chip: time by kind of work, and what is communicated.

The time of an operation is the largest of its FLOPs at the chip's peak, its bytes at the speed of
HBM and, of matrix products alone, the compiler's own estimate of cycles: that of elementwise work
is two to four times too high. Against published speeds of a known trainer the sum was 10% and 16%
too low; it is good for comparing two programs on one chip, not for comparing kernels or chips.
"""

import math
import re
from typing import NamedTuple

from bigjax.layers.splash import PRODUCTS, SCOPE
from bigjax.plan import hlo
from bigjax.plan.chips import Chip

KERNEL_SHARE = 0.5  # of the peak, that attention kernels are taken to reach
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w+)"')
CUDNN_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]')


class Collective(NamedTuple):
    """axes: of the mesh, as 'fsdp', or 'slices'. bytes: that one device sends a step. seconds: on a
    ring of one pair of links; over the network where it is between slices; None of GPUs."""

    kind: str
    axes: str
    bytes: float
    seconds: float | None


class Costs(NamedTuple):
    """Of a step on one device; seconds without communication, kernels apart, None of GPUs."""

    flops: float  # of matrix products
    kernel_flops: float
    seconds: float | None
    kernel_seconds: float | None
    collectives: list[Collective]

    @property
    def communication(self) -> float | None:
        return None if self.seconds is None else sum(c.seconds for c in self.collectives)

    @property
    def work(self) -> float | None:
        return None if self.seconds is None else self.seconds + self.kernel_seconds

    @property
    def step(self) -> tuple[float, float] | None:
        """Seconds of a step if communication hides behind work whole, and if not at all."""
        if self.seconds is None:
            return None
        return max(self.work, self.communication), self.work + self.communication


def costs(text: str, chip: Chip, mesh: dict[str, int], slices: int = 1) -> Costs:
    """text: of the compiled step. mesh: the size of each axis, in order, of which the first is cut
    over the slices: a step is compiled for one slice, and numbers the devices within it."""
    first, *rest = mesh.items()
    walk = _Walk(hlo.Module(text), chip, {first[0]: first[1] // slices, **dict(rest)}, slices)
    walk.computation(walk.module.entry, 1)
    found = [
        Collective(kind, axes, sent, seconds if chip.timed else None)
        for (kind, axes), (sent, seconds) in sorted(walk.collectives.items())
    ]
    if not chip.timed:
        return Costs(walk.flops, walk.kernel_flops, None, None, found)
    kernel_seconds = walk.kernel_flops / (KERNEL_SHARE * chip.peak * 1e12)
    return Costs(walk.flops, walk.kernel_flops, walk.seconds, kernel_seconds, found)


class _Walk:
    """Adds up what a computation costs, loops multiplied out."""

    def __init__(self, module: hlo.Module, chip: Chip, mesh: dict[str, int], slices: int) -> None:
        self.module, self.chip, self.mesh, self.slices = module, chip, mesh, slices
        self.flops = self.kernel_flops = self.seconds = 0.0
        self.collectives: dict[tuple[str, str], tuple[float, float]] = {}

    def computation(self, name: str, times: float) -> None:
        c, channels = self.module.computations[name], set()
        for op in c.ops.values():
            if op.opcode == "while":
                self.computation(op.attribute("body"), times * self.module.trips(op))
            elif op.opcode in ("call", "conditional"):
                for inner in hlo.called(op):
                    self.computation(inner, times)
            else:
                self._op(c, op, times, channels)

    def _op(self, c: hlo.Computation, op: hlo.Op, times: float, channels: set) -> None:
        self._collectives(c, op, times, channels)
        if op.opcode == "custom-call" and KERNEL.search(op.text):
            self.kernel_flops += times * _kernel_flops(op)
            return
        if op.opcode == "send":
            self._between_slices(op, times)
        if _kind(op) or op.opcode in ("send", "recv", "send-done", "recv-done"):
            return
        flops, chip = self.module.op_flops(c, op), self.chip
        self.flops += times * flops
        if not chip.timed:
            return
        self.seconds += times * max(
            flops / (chip.peak * 1e12),
            self.module.hbm_bytes(c, op) / (chip.hbm * 1e9),
            op.cycles / (chip.clock * 1e9) if flops else 0.0,
        )

    def _collectives(
        self, c: hlo.Computation, op: hlo.Op, times: float, channels: set, fused: bool = False
    ) -> None:
        """Those of an operation. Of a collective cut over several fusions, so that others run
        meanwhile, each fusion shows the whole: it counts once by its channel. Outside of fusions
        a channel stands as often as the compiler has unrolled its loop."""
        kind = _kind(op)
        if not kind:
            for name in hlo.called(op):
                inner = self.module.computations[name]
                for one in inner.ops.values():
                    self._collectives(inner, one, times, channels, True)
            return
        channel = op.attribute("channel_id"), kind, tuple((a.dtype, a.dims) for a in op.arrays)
        if fused and channel[0] and channel in channels:
            return
        channels.add(channel)
        if kind == "all-reduce" and c.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        ids = group(op.text)
        n = len(ids)
        if kind == "collective-permute":  # its result has the source too
            size, share, links = op.arrays[0].bytes, 1.0, 1
        else:
            into = sum(a.bytes for x in c.inputs(op) for a in x.arrays)
            out = sum(a.bytes for a in op.arrays)
            if op.opcode != kind and kind != "all-reduce":  # begun: its result has the inputs too
                out -= into
            size, links = max(into, out), 2  # a ring in both directions
            share = (2 if kind == "all-reduce" else 1) * (n - 1) / max(n, 1)
        self._sent(
            kind,
            self._axes(ids),
            times * size * share,
            links * self.chip.link if self.chip.timed else math.inf,
        )

    def _sent(self, kind: str, axes: str, sent: float, speed: float) -> None:
        """Adds what one device sends, at so many GB/s."""
        all_sent, seconds = self.collectives.get((kind, axes), (0.0, 0.0))
        self.collectives[kind, axes] = all_sent + sent, seconds + sent / (speed * 1e9)

    def _between_slices(self, op: hlo.Op, times: float) -> None:
        """What a device hands to its host, for the network."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.text)
        if not kind:
            return
        kind, n = kind[1].lower().replace("_", "-"), self.slices
        if kind == "one-to-one":
            kind, n = "collective-permute", 2
        sent = times * op.arrays[0].bytes * (2 * (n - 1) / n if kind == "all-reduce" else n - 1)
        self._sent(kind, "slices", sent, self.chip.dcn)

    def _axes(self, ids: list[int]) -> str:
        """The axes of the mesh along which a group of devices lies."""
        sizes = [*self.mesh.values()]
        places = [_unravel(i, sizes) for i in ids]
        return " x ".join(axis for axis, of in zip(self.mesh, zip(*places)) if len(set(of)) > 1)


def _kernel_flops(op: hlo.Op) -> float:
    """Of a Pallas kernel: what it says of itself; of splash attention what its program says; of
    cuDNN's attention two products of [T, D] and [D, S] forward and five backward, which computes
    the scores again. Those that causality masks count, though cuDNN leaves most of them out."""
    scores = CUDNN_SCORES.search(op.text)
    if scores:
        sizes = [int(n) for n in re.findall(r"\d+", scores[1])]
        products = 5 if "Backward" in KERNEL.search(op.text)[1] else 2
        return 2.0 * products * math.prod(sizes) * op.arrays[0].dims[-1]
    product = re.search(SCOPE + r"(\d+)", op.text)
    kind = next((x for x in PRODUCTS if op.name.startswith(x)), None)
    if kind and product:
        return 2.0 * PRODUCTS[kind] * int(product[1])
    said = re.search(r'"flops":"?(\d+)', op.text)
    return float(said[1]) if said else 0.0


def _kind(op: hlo.Op) -> str | None:
    name = op.opcode.removesuffix("-start")
    return name if name in KINDS else None


def group(text: str) -> list[int]:
    """The devices of the first group of a collective, in any of HLO's notations."""
    pairs = re.search(r"source_target_pairs=\{(\S*?)\}\}", text)
    if pairs:
        return next(
            ([int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[1]) if a != b), [0]
        )
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return [int(i) for i in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape = [int(i) for i in iota[3].split(",")]
        order = [int(i) for i in iota[4].split(",")] if iota[4] else range(len(shape))
        return _transposed(shape, [*order])[: int(iota[2])]
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}", text
    )
    if named:
        sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        within = re.findall(r"'(\w+)'(?!:)", named[3])
        names = [*sizes]
        last = [names.index(x) for x in names if x not in within] + [names.index(x) for x in within]
        places = _transposed([*sizes.values()], last)[: math.prod(sizes[x] for x in within)]
        order = re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", named[2] or "")
        if not order:
            return places
        ids = _transposed(*([int(i) for i in part.split(",")] for part in order.groups()))
        return [ids[i] for i in places]
    return [0]


def _transposed(shape: list[int], order: list[int]) -> list[int]:
    """iota(shape).transpose(order), flattened."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    out = [0]
    for axis in order:
        out = [x + i * strides[axis] for x in out for i in range(shape[axis])]
    return out


def _unravel(i: int, sizes: list[int]) -> list[int]:
    out = []
    for n in reversed(sizes):
        out.append(i % n)
        i //= n
    return out[::-1]
