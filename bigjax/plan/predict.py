"""The costs of a compiled step on a chip: seconds of computation, and communication.

The time of an operation is the largest of its FLOPs at the chip's peak, its bytes at the bandwidth
of HBM and, for matrix products, the compiler's own estimate of cycles (which is two to four times
too high for elementwise operations). docs/plan.md has the errors for published step times.
"""

import math
import re
from typing import NamedTuple

from bigjax.layers.kernels import splash, whole
from bigjax.layers.kernels.common import SCOPE, SCORES
from bigjax.plan import hlo
from bigjax.plan.chips import Chip
from bigjax.plan.count import Counter
from bigjax.plan.schedule import Entry, Schedule
from bigjax.plan.traffic import Traffic

# Compared with published step times: see docs/plan.md and benchmarks/published_runs.py.
WIDTH = 128  # of the heads for which Chip.attention holds; others take as long, up to this share:
AT_MOST = 0.85
OVERLAP = 0.75  # of the communication that could overlap with work, the share that does
PRODUCTS = {**splash.PRODUCTS, **whole.PRODUCTS}  # of attention kernels, by their names
KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w+)"')
CUDNN_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]')


class Collective(NamedTuple):
    """axes: of the mesh, such as 'fsdp', or 'slices'. bytes: that one device sends per step.
    seconds: over the `links` it uses, or over the network between slices; None for GPUs."""

    kind: str
    axes: str
    bytes: float
    seconds: float | None


class Costs(NamedTuple):
    """Of a step on one device. seconds: without communication and kernels; None for GPUs."""

    flops: float  # of matrix products
    kernel_flops: float
    seconds: float | None
    kernel_seconds: float | None
    collectives: list[Collective]
    hbm_bytes: float = 0.0  # read and written, without kernels
    schedule: tuple[Entry, ...] = ()  # where the seconds go, those of communication too
    unknown_loops: int = 0  # that run an unknown number of times, and count once

    @property
    def communication(self) -> float | None:
        return None if self.seconds is None else sum(c.seconds for c in self.collectives)

    @property
    def work(self) -> float | None:
        return None if self.seconds is None else self.seconds + self.kernel_seconds

    @property
    def step(self) -> tuple[float, float] | None:
        """Seconds per step if communication overlaps with work completely, and if not at all."""
        return None if self.seconds is None else step_range(self.work, self.communication)


def costs(text: str, chip: Chip, mesh: dict[str, int], slices: int = 1) -> Costs:
    """The costs of a compiled step, from its text.

    mesh: the size of each axis, in order; slices divide the first one. A step is compiled for one
    slice and numbers the devices within it.
    """
    first, *rest = mesh.items()
    walk = _Walk(hlo.Module(text), chip, {first[0]: first[1] // slices, **dict(rest)}, slices)
    walk.computation(walk.module.entry, 1)
    collectives = [
        Collective(kind, axes, sent, seconds if chip.timed else None)
        for (kind, axes), (sent, seconds) in sorted(walk.collectives.items())
    ]
    if not chip.timed:
        seconds, kernel_seconds, schedule = None, None, ()
    else:
        seconds, kernel_seconds = walk.seconds, walk.kernel_seconds
        schedule = walk.schedule.entries()
    return Costs(
        walk.flops,
        walk.kernel_flops,
        seconds,
        kernel_seconds,
        collectives,
        walk.hbm_bytes,
        schedule,
        len(walk.unknown_loops),
    )


class _Walk:
    """Adds up the costs of a computation, with loops multiplied out."""

    def __init__(self, module: hlo.Module, chip: Chip, mesh: dict[str, int], slices: int) -> None:
        self.module, self.count, self.traffic = module, Counter(module), Traffic(module)
        self.schedule = Schedule(module)
        self.chip, self.mesh, self.slices = chip, mesh, slices
        self.flops = self.kernel_flops = self.hbm_bytes = 0.0
        self.seconds = self.kernel_seconds = 0.0
        self.collectives: dict[tuple[str, str], tuple[float, float]] = {}
        self.unknown_loops: set[str] = set()

    def computation(self, name: str, times: float) -> None:
        c, channels = self.module.computations[name], set()
        for op in c.ops.values():
            if op.opcode == "while":
                trips = self.count.trips(op)
                if trips is None:
                    self.unknown_loops.add(op.name)
                self.computation(op.attribute("body"), times * (trips or 1))
            elif op.opcode == "call":
                for inner in hlo.called(op):
                    self.computation(inner, times)
            elif op.opcode == "conditional":
                self._add_largest(hlo.called(op), times)
            else:
                self._op(c, op, times, channels)

    def _add_largest(self, branches: list[str], times: float) -> None:
        """Adds the branch of a conditional that takes the most time: only one of them runs."""
        walks = []
        for name in branches:
            walks.append(_Walk(self.module, self.chip, self.mesh, self.slices))
            walks[-1].computation(name, times)
        if not walks:
            return
        largest = max(walks, key=lambda walk: walk.amounts)
        for name in ("flops", "kernel_flops", "hbm_bytes", "seconds", "kernel_seconds"):
            setattr(self, name, getattr(self, name) + getattr(largest, name))
        for key, (sent, seconds) in largest.collectives.items():
            before = self.collectives.get(key, (0.0, 0.0))
            self.collectives[key] = before[0] + sent, before[1] + seconds
        self.schedule.update(largest.schedule)
        self.unknown_loops |= largest.unknown_loops

    @property
    def amounts(self) -> tuple[float, ...]:
        """To compare branches by: seconds, which are 0 for GPUs, FLOPs, and bytes."""
        communication = sum(seconds for _, seconds in self.collectives.values())
        flops = self.flops + self.kernel_flops
        return self.seconds + self.kernel_seconds + communication, flops, self.hbm_bytes

    def _op(self, c: hlo.Computation, op: hlo.Op, times: float, channels: set) -> None:
        self._collectives(c, op, times, channels)
        if op.opcode == "custom-call" and KERNEL.search(op.text):
            flops, width = _kernel(op)
            self.kernel_flops += times * flops
            if self.chip.timed:
                seconds = times * (
                    _whole_seconds(op, self.chip) or kernel_seconds(flops, self.chip, width)
                )
                self.kernel_seconds += seconds
                self.schedule.add(c, op, "kernel", seconds, "schedule")
            return
        if op.opcode == "send":
            self._between_slices(c, op, times)
        if op.collective or op.opcode in ("send", "recv", "send-done", "recv-done"):
            return
        flops, hbm, chip = self.count.op_flops(c, op), self.traffic.bytes(c, op), self.chip
        self.flops += times * flops
        self.hbm_bytes += times * hbm
        if not chip.timed:
            return
        bounds = {
            "FLOPs": flops / (chip.peak * 1e12),
            "HBM": hbm / (chip.hbm * 1e9),
            "cycles": op.cycles / (chip.clock * 1e9) if flops else 0.0,
        }
        bound = max(bounds, key=lambda name: bounds[name])
        self.seconds += times * bounds[bound]
        copy = self.schedule.is_copy(op)
        kind = "matrix product" if flops else "copy" if copy else "elementwise"
        self.schedule.add(c, op, kind, times * bounds[bound], bound)

    def _collectives(
        self,
        c: hlo.Computation,
        op: hlo.Op,
        times: float,
        channels: set,
        caller: tuple[hlo.Computation, hlo.Op] | None = None,
    ) -> None:
        """Adds the collectives of an operation. caller: what runs its computation, if that is not
        the one that is walked.

        A collective that is split over several fusions, to overlap with others, appears in full in
        each: it counts once per channel. Outside of fusions a channel appears once for each
        iteration of an unrolled loop, and all count.
        """
        kind = op.collective
        if not kind:
            for name in hlo.called(op):
                inner = self.module.computations[name]
                for inner_op in inner.ops.values():
                    self._collectives(inner, inner_op, times, channels, (c, op))
            return
        channel = op.attribute("channel_id"), kind, tuple((a.dtype, a.dims) for a in op.arrays)
        fused = caller is not None and caller[1].opcode == "fusion"
        if fused and channel[0] and channel in channels:
            return
        channels.add(channel)
        if kind == "all-reduce" and c.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        ids = group(op.text)
        n = len(ids)
        if kind == "collective-permute":  # its result includes the source
            size, share, used = op.arrays[0].bytes, 1.0, 1
        else:
            into = sum(a.bytes for x in c.inputs(op) for a in x.arrays)
            out = sum(a.bytes for a in op.arrays)
            if op.opcode != kind and kind != "all-reduce":  # -start: its result includes the inputs
                out -= into
            size, used = max(into, out), links((caller[1] if fused else op).text)
            if not self.chip.wraps:  # a chip in the corner of a slice has one link per dimension
                used = min(used, 2)
            share = (2 if kind == "all-reduce" else 1) * (n - 1) / max(n, 1)
        speed = used * self.chip.link if self.chip.timed else math.inf
        seconds = self._sent(kind, self._axes(ids), times * size * share, speed)
        self.schedule.add(c, op, "collective", seconds, "links", caller)

    def _sent(self, kind: str, axes: str, sent: float, speed: float) -> float:
        """Adds the bytes that one device sends; speed in GB/s. Returns the seconds."""
        all_sent, seconds = self.collectives.get((kind, axes), (0.0, 0.0))
        more = sent / (speed * 1e9)
        self.collectives[kind, axes] = all_sent + sent, seconds + more
        return more

    def _between_slices(self, c: hlo.Computation, op: hlo.Op, times: float) -> None:
        """Adds what a device passes to its host, for the network."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.text)
        if not kind:
            return
        kind, n = kind[1].lower().replace("_", "-"), self.slices
        if kind == "one-to-one":
            kind, n = "collective-permute", 2
        sent = times * op.arrays[0].bytes * (2 * (n - 1) / n if kind == "all-reduce" else n - 1)
        seconds = self._sent(kind, "slices", sent, self.chip.dcn)
        self.schedule.add(c, op, "collective", seconds, "network")

    def _axes(self, ids: list[int]) -> str:
        """The mesh axes along which the devices of a group differ."""
        sizes = [*self.mesh.values()]
        coordinates = [_unravel(i, sizes) for i in ids]
        return " x ".join(
            axis for axis, values in zip(self.mesh, zip(*coordinates)) if len(set(values)) > 1
        )


def step_range(work: float, communication: float) -> tuple[float, float]:
    """Seconds per step if communication overlaps with work completely, and if not at all."""
    return max(work, communication), work + communication


def expected(step: tuple[float, float], overlap: float = OVERLAP) -> float:
    """Seconds per step, from those with complete overlap and those without. overlap: the share of
    the communication that could overlap with work that does."""
    low, high = step
    return high - overlap * (high - low)


def kernel_seconds(flops: float, chip: Chip, width: int = WIDTH) -> float:
    """Of attention kernels for heads of this width."""
    return flops / (min(chip.attention * width / WIDTH, AT_MOST) * chip.peak * 1e12)


def _whole_seconds(op: hlo.Op, chip: Chip) -> float:
    """Of the kernel `whole`, which takes its time for the scores, whatever the width of the heads;
    0 for other kernels."""
    scores = re.search(SCORES + r"(\d+)", op.text)
    kind = next((i for i, x in enumerate(whole.PRODUCTS) if op.name.startswith(x)), None)
    if kind is None or not scores:
        return 0.0
    return int(scores[1]) * chip.scores[kind] / (chip.clock * 1e12)


def _kernel(op: hlo.Op) -> tuple[float, int]:
    """(FLOPs of a kernel, the width of its heads): what a Pallas kernel states, of unknown width;
    for splash and whole what layers/kernels/ writes into the program; for cuDNN's
    attention two products of [T, D] and [D, S] forward and five backward, which recomputes the
    scores. Masked scores count, though cuDNN skips most."""
    scores = CUDNN_SCORES.search(op.text)
    if scores:
        sizes = [int(n) for n in re.findall(r"\d+", scores[1])]
        products = 5 if "Backward" in KERNEL.search(op.text)[1] else 2
        width = op.arrays[0].dims[-1]
        return 2.0 * products * math.prod(sizes) * width, width
    product = re.search(SCOPE + r"(\d+)", op.text)
    kind = next((x for x in PRODUCTS if op.name.startswith(x)), None)
    if kind and product:
        result = max(op.arrays, key=lambda a: len(a.dims))  # the others are of one block
        return 2.0 * PRODUCTS[kind] * int(product[1]), result.dims[-1]
    stated = re.search(r'"flops":"?(\d+)', op.text)
    return float(stated[1]) if stated else 0.0, WIDTH


def links(text: str) -> int:
    """Links that a device sends over at once in a collective: two for each dimension of the torus
    in the algorithm that the TPU compiler writes beside it; two, a ring, if it writes none."""
    gather = re.search(r'"emitter":"(\d)DAllGather', text)
    if gather:
        return 2 * int(gather[1])
    strategy = re.search(r"\\n(\w+)\{colors:(\d+)", text)
    if strategy:  # a ring per color, in one direction or in both
        return int(strategy[2]) * (1 if strategy[1].startswith("UniDirection") else 2)
    return 2


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
        positions = _transposed([*sizes.values()], last)[: math.prod(sizes[x] for x in within)]
        order = re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", named[2] or "")
        if not order:
            return positions
        ids = _transposed(*([int(i) for i in part.split(",")] for part in order.groups()))
        return [ids[i] for i in positions]
    return [0]


def _transposed(shape: list[int], order: list[int]) -> list[int]:
    """iota(shape).transpose(order), flattened."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    out = [0]
    for axis in order:
        out = [x + i * strides[axis] for x in out for i in range(shape[axis])]
    return out


def _unravel(i: int, sizes: list[int]) -> list[int]:
    """The coordinates of number i in an array of these sizes."""
    out = []
    for n in reversed(sizes):
        out.append(i % n)
        i //= n
    return out[::-1]
