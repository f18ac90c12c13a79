"""`bigjax plan --search`: layouts of a config on a pod, ranked by the time of their compiled steps.

Layouts that cannot fit by arithmetic are not compiled. Nor are those that must be slower than the
best so far, by rough estimates corrected with the plans compiled so far, and those that need at
least as much memory as one that did not fit. The rest is compiled, the most promising first, until
the time is up. Plans are cached by content, so the same command continues where it stopped.
"""

from collections.abc import Callable, Iterator
import itertools
import math
import time
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from bigjax import models, modules, optim, tasks
from bigjax.errors import RunError, UserError
from bigjax.layers.output import GRADIENTS_AT_ONCE, LOGITS_AT_ONCE
from bigjax.layers.remat import REMAT
from bigjax.parallel import sharding
from bigjax.parallel.mesh import AXES
from bigjax.plan import chips, predict
from bigjax.plan import compile as compile_lib
from bigjax.plan.compile import device_bytes
from bigjax.train.state import abstract
from bigjax.trees import partition

# Whether matrix products are split so that gathers and scatters overlap with them; which is faster
# depends on the layout. Other flags that were tried made no difference.
WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
FLAGS = ({}, {WINDOWED: "1000000"})
MICRO_BATCHES = (1, 2, 4, 8, 16)
SHARE_OF_PEAK = 0.7  # that a step's computation reaches
MARGIN = 0.1  # by which an estimate may be further off than any so far, relative to the seconds
USUAL = 1.4  # typical activation memory, relative to the minimum
SPARE = 0.05  # of the HBM stays free: a run also holds its next batch


class Candidate(NamedTuple):
    """A layout. estimate: seconds per step. needs: approximate bytes per device, to compare layouts
    with the same remat."""

    mesh: dict[str, int]
    remat: str
    accumulate: int
    options: dict[str, str]
    estimate: float
    needs: float

    def lines(self) -> list[str]:
        """Lines of a config file that choose this layout."""
        return [
            *(f"c.mesh.{axis} = {n}" for axis, n in self.mesh.items()),
            *([f"c.model.remat = {self.remat!r}"] if self.remat else []),
            f"c.train.accumulate = {self.accumulate}",
            *([f"c.train.compiler_options = {self.options}"] if self.options else []),
        ]

    def __str__(self) -> str:
        mesh = " ".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1) or "one device"
        return (
            f"{mesh}, {'remat ' + self.remat + ', ' if self.remat else ''}"
            f"{self.accumulate} micro-batch{'es' if self.accumulate > 1 else ''}"
            + (", no windowed einsum" if WINDOWED in self.options else "")
        )


class Result(NamedTuple):
    candidate: Candidate
    plan: compile_lib.Plan
    seconds: float  # the expected ones


def search(
    config,
    topology: str,
    slices: int,
    minutes: float,
    log: Callable[[str], None],
    seconds_of: Callable[[compile_lib.Plan], float],
) -> list[Result]:
    """The layouts that were compiled and fit, best first.

    seconds_of(plan) -> expected ones of a step. Raises UserError if no layout that was tried fits,
    or for a task with several kinds of steps; RunError if the compiler fails and nothing else fits.
    """
    start = time.monotonic()
    candidates, ruled_out = _candidates(config, topology, slices)
    if not candidates[0].remat:
        log(
            f"model.name={config.model.name!r} does not define plan_sizes: the search varies no "
            "model.remat, and knows the memory of activations only after compiling."
        )
    log(
        f"{len(candidates)} combinations of layout and flags may fit; {ruled_out} cannot. "
        "Compiling one takes a minute or more."
    )
    results: list[Result] = []
    too_large: list[Candidate] = []
    failure: RunError | None = None
    left = list(candidates)
    while promising := _promising(left, results, too_large):
        tried = len(candidates) - len(left)
        if tried and time.monotonic() - start > 60 * minutes:
            log(
                f"The {minutes:g} minutes are up. {len(promising)} that may be faster were not "
                "tried; the same command continues with them."
            )
            if not results:
                raise failure or UserError(
                    f"None of the {tried} layouts that were tried fits {slices} x "
                    f"{topology}: give --search more --budget-minutes, or use a larger "
                    "slice or a smaller train.batch_size."
                )
            break
        candidate = promising[0]
        left.remove(candidate)
        try:
            (plan,) = compile_lib.plans(apply(config, candidate), topology, slices)
        except RunError as e:  # the compiler fails on some programs
            failure = failure or e
            log(f"  {candidate}: {e}")
            continue
        if plan.fits and plan.peak_bytes <= (1 - SPARE) * plan.limit_bytes:
            results.append(Result(candidate, plan, seconds_of(plan)))
            gib = plan.peak_bytes / chips.GIB
            log(f"  {candidate}: {results[-1].seconds:.3g} s, {gib:.2f} GiB")
        else:
            too_large.append(candidate)
            log(f"  {candidate}: does not fit")
    else:
        log(
            f"Compiled {len(candidates) - len(left)}; by estimate the other {len(left)} are slower "
            "or too large."
        )
    if not results:
        raise failure or UserError(
            f"No layout of this config fits {slices} x {topology}: use a larger slice, "
            "or a smaller train.batch_size."
        )
    return sorted(results, key=lambda r: r.seconds)


def _promising(
    candidates: list[Candidate], results: list[Result], too_large: list[Candidate]
) -> list[Candidate]:
    """Candidates that may fit and may be faster than the best, given the error of estimates."""
    candidates = [
        c
        for c in candidates
        if not any(c.remat == x.remat and c.needs >= x.needs for x in too_large)
    ]
    if not results:
        return candidates
    best = min(r.seconds for r in results)
    error = (1 - MARGIN) * min(r.seconds / r.candidate.estimate for r in results)
    return [c for c in candidates if c.estimate * error < best]


def apply(config, candidate: Candidate):
    """A copy of the config with a candidate's choices."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.mesh.update(candidate.mesh)
        changed.train.accumulate = candidate.accumulate
        changed.train.compiler_options = candidate.options
        if candidate.remat:
            changed.model.remat = candidate.remat
    return changed


def _candidates(config, topology: str, slices: int) -> tuple[list[Candidate], int]:
    """(layouts that may fit, the most promising first; how many cannot)."""
    chip, sizes = chips.parse(topology)
    n = math.prod(sizes) * slices * (2 if chip == "tpu7x" else 1)
    task = tasks.build(config)
    if len(phases := task.phases(config.train.steps)) > 1:
        raise UserError(
            f"--search needs a task with one kind of step; this one has {len(phases)}. Use "
            "--mesh=... instead."
        )
    arithmetic = _Arithmetic(config, task, chips.figures(topology), sizes, n, slices)
    remats = tuple(REMAT) if arithmetic.varies_remat else ("",)
    own = config.train.compiler_options.to_dict()
    room = (1 - SPARE) * chips.CHIPS[chip].limit * chips.GIB
    kept, ruled_out = [], 0
    for mesh in _meshes(n, slices):
        at_rest = arithmetic.at_rest(mesh)
        for remat, micro in itertools.product(remats, MICRO_BATCHES):
            rows, rest = divmod(config.train.batch_size, mesh["data"] * mesh["fsdp"] * micro)
            kept_bytes = arithmetic.activations(mesh, remat, micro)
            # While there are examples to shard, 'data' is better than 'sequence': no keys travel.
            pointless = mesh["sequence"] > 1 and rows % mesh["sequence"] == 0
            if at_rest is None or rest or pointless or at_rest + kept_bytes > room:
                ruled_out += 1
                continue
            kept += [
                Candidate(
                    mesh,
                    remat,
                    micro,
                    {**own, **flags},
                    arithmetic.seconds(mesh, remat, micro),
                    at_rest + USUAL * kept_bytes,
                )
                for flags in FLAGS
            ]
    if not kept:
        raise UserError(
            f"No layout of this config fits {slices} x {topology}, by arithmetic: use "
            "a larger slice, or a smaller train.batch_size."
        )
    return _varied(kept, room), ruled_out


def _varied(candidates: list[Candidate], room: float) -> list[Candidate]:
    """The most promising first, but similar ones spread out, and those that probably need more
    memory than `room` later: most of them do not fit."""
    seen: dict[tuple, int] = {}
    keys = []
    rank = lambda c: c.estimate * (2 if c.needs > room else 1)
    for c in sorted(candidates, key=rank):
        kind = c.mesh["sequence"], c.mesh["tensor"], c.remat, c.accumulate
        seen[kind] = seen.get(kind, -1) + 1
        keys.append((rank(c) * (1 + 0.1 * seen[kind]), len(keys), c))
    return [c for *_, c in sorted(keys)]


def _meshes(n: int, slices: int) -> Iterator[dict[str, int]]:
    """Sizes of the mesh axes whose product is n; slices are along 'data'."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    for sizes in itertools.product(divisors, repeat=len(AXES) - 1):
        if n % math.prod(sizes) == 0 and (n // math.prod(sizes)) % slices == 0:
            yield dict(zip(AXES, (n // math.prod(sizes), *sizes)))


class _Arithmetic:
    """Estimates of a layout without compiling it: seconds, and bytes per device."""

    def __init__(
        self, config, task, chip: chips.Chip, torus: tuple[int, ...], n: int, slices: int
    ) -> None:
        self.config, self.task, self.chip, self.torus = config, task, chip, torus
        self.n, self.slices = n, slices
        self.params = jax.eval_shape(task.init, jax.random.key(0))["params"]
        self.opt_state = jax.eval_shape(
            optim.make(config.optim, config.train.steps, self.params).init, self.params
        )
        self.frozen = {
            name: jax.eval_shape(part.init, jax.random.key(0)) for name, part in task.frozen.items()
        }
        # Positions that attention runs over; a model without attention has 1 per example.
        self.lengths = tuple(task.attention_lengths.values())
        self.weights = sum(x.size for x in jax.tree_util.tree_leaves(self.params))
        family = modules.of(config, "model")
        self.varies_remat = hasattr(family, "plan_sizes")
        # Without plan_sizes the activations count as nothing.
        self.model = (
            family.plan_sizes(modules.options(config, "model"))
            if self.varies_remat
            else models.PlanSizes()
        )

    def at_rest(self, sizes: dict[str, int]) -> float | None:
        """Parameters and their gradients, frozen parts, and the optimizer's state unless it is kept
        in host memory; None if they do not divide."""
        mesh = AbstractMesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
        )
        n = sizes["sequence"]
        if n > 1 and (not self.lengths or any(T % (128 * n) for T in self.lengths)):
            return None
        try:
            shardings = sharding.of_params(mesh, self.params, self.task.axes["params"])
            params = abstract(self.params, shardings)
            with_gradient, _ = partition(params, optim.trained(self.config.optim, params))
            total = device_bytes(params) + device_bytes(with_gradient)
            for name, part in self.task.frozen.items():
                shapes = self.frozen[name]
                total += device_bytes(abstract(shapes, sharding.of_params(mesh, shapes, part.axes)))
        except UserError:
            return None
        if not self.config.optim.offload:
            layout = sharding.of_opt_state(mesh, self.opt_state, self.params, shardings)
            total += device_bytes(abstract(self.opt_state, layout))
        return total

    def activations(self, sizes: dict[str, int], remat: str, micro: int) -> float:
        """The least that is kept from the forward to the backward pass."""
        m, tokens = self.model, self._tokens(sizes) / micro
        kept, weights = m.width, 0.0
        if remat == "attention":
            kept += m.queries + m.keys
        elif remat == "dots":
            kept += m.queries + m.keys + m.inner
        elif remat == "none":  # norms, residuals, both sides of the activation, gathered weights
            kept = 6 * m.width + m.queries + m.keys + 2 * m.inner
            weights = 2 * self.weights / sizes["tensor"]
        logits = tokens * m.vocab / sizes["tensor"]
        logits = 4 * min(logits, LOGITS_AT_ONCE) + 2 * min(logits, GRADIENTS_AT_ONCE)
        return weights + tokens * 2 * m.layers * kept / sizes["tensor"] + logits

    def seconds(self, sizes: dict[str, int], remat: str, micro: int) -> float:
        """An estimate of the expected seconds."""
        m, batch_size, tokens = self.model, self.config.train.batch_size, self._tokens(sizes)
        recomputed = {"full": 4 / 3, "attention": 1.2}.get(remat, 1.0)
        work = (
            self.task.flops_per_example
            * batch_size
            * recomputed
            / (self.n * SHARE_OF_PEAK * self.chip.peak * 1e12)
        )
        sizes = {**sizes, "data": sizes["data"] // self.slices}  # within a slice
        share = lambda axis: (sizes[axis] - 1) / sizes[axis]
        weights = 2 * self.weights / sizes["tensor"]  # bfloat16
        passes = 1 if remat in ("none", "") else 2
        # Over several dimensions of the torus gradients are summed whole, not scattered.
        back = 1 if any(n % sizes["fsdp"] == 0 for n in self.torus) else 2
        sent = weights * share("fsdp") * (passes + back) * micro
        whole = 2 * weights / sizes["fsdp"] * share("data") * micro
        communication = sent / self._speed(sizes["fsdp"]) + whole / self._speed(sizes["data"])
        # In each block activations are gathered and scattered at attention and MLP, forward and
        # backward, and gathered again for the gradients of the weights.
        resent = {"full": 2, "attention": 1}.get(remat, 0)
        sent = (10 + resent) * 2 * tokens * m.width * m.layers * share("tensor")
        communication += sent / self._speed(sizes["tensor"])
        keys = 2 * tokens * m.keys * m.layers * (sizes["sequence"] - 1) / sizes["tensor"]
        communication += (passes + 1) * keys / self._speed(sizes["sequence"])
        between = 2 * weights / sizes["fsdp"] * (self.slices - 1) / self.slices * micro
        communication += between / (self.chip.dcn * 1e9)
        return predict.expected(predict.step_range(work, communication))

    def _speed(self, n: int) -> float:
        """Bytes per second that a device sends along an axis of n devices: over two links of each
        dimension of the torus that the axis needs; of one that is not closed to rings, two."""
        covered, dims = 1, 0
        for size in sorted(self.torus, reverse=True):
            if covered >= n:
                break
            covered, dims = covered * size, dims + 1
        return 2 * (max(dims, 1) if self.chip.wraps else 1) * self.chip.link * 1e9

    def _tokens(self, sizes: dict[str, int]) -> float:
        """Per step, on a device that holds the activations of complete rows."""
        return (
            self.config.train.batch_size
            * (sum(self.lengths) or 1)
            / (sizes["data"] * sizes["fsdp"] * sizes["sequence"])
        )
