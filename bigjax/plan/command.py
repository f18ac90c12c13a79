"""`bigjax plan`: memory, speed and communication of a config on TPUs or GPUs, without them."""

import math
import os
import re

from absl import flags
from etils import epath

from bigjax import json_text, paths, report
from bigjax.config import DEFAULT_CONFIG
from bigjax.errors import UserError, cannot_write
from bigjax.layers.remat import HOST
from bigjax.plan import gpu, html, schedule
from bigjax.plan.chips import CHIPS, GIB, parse
from bigjax.plan.schedule import duration

TRUST = """\
How far to trust this. HBM: the compiler's own figure; a step that it refuses does not fit. FLOPs
and bytes sent: counted in the compiled program, with loops multiplied out. Seconds: the expected
ones were compared with 8 published runs on v4, v5e, v6e and tpu7x: median error 9.4%, worst -17.6%
(on v4), 3 in the range. Compare layouts of one model on one chip with them, not chips. The range is
from communication that overlaps with computation completely to none; three quarters of what could
overlap are expected to. Attention kernels take the time of their schedules."""
TRUST_GPU = """\
How far to trust this. HBM: the compiler's own figure for its default kernels; on a GPU it tries
several, which changes the figure a little. The limit is the share of the memory that jax allocates
({share:.0%}; set by XLA_CLIENT_MEM_FRACTION, for the plan and for the run). FLOPs and bytes sent:
counted in the compiled program, with loops multiplied out; those of cuDNN's attention include
masked scores. No seconds and no MFU: the compiler predicts none, and a GPU chooses its kernels by
measuring."""

_NOT_TIMED = "; the time of transfers to the host is not included"


def run(f: flags.FlagValues, config) -> None:
    """Prints the plan of a config and writes it to --html=FILE. With --json the last line is a JSON
    object."""
    if not f.topology:
        raise UserError("--topology=CHIP:AxB is missing: name the pod, such as v5e:16x16.")
    if f["budget-minutes"].present and not f.search:
        raise UserError("--budget-minutes has no effect without --search. Leave it out.")
    if not 0 < f["budget-minutes"].value < math.inf:
        raise UserError(
            f"--budget-minutes is {f['budget-minutes'].value}; it must be positive and finite."
        )
    if f.slices < 1:
        raise UserError(f"--slices is {f.slices}; it must be at least 1.")
    chip = parse(f.topology)[0]
    for name in ("search", "calibrate") if not CHIPS[chip].timed else ():
        if f[name].value:
            raise UserError(
                f"--{name} needs predicted seconds, and plans for {chip} have none, only memory "
                "and communication. Leave it out, and try layouts with --mesh."
            )
    if f.search and f.mesh:
        raise UserError("--search tries every mesh. Leave out --mesh or --search.")
    if f.html and not f.html.endswith((".html", ".htm")):
        raise UserError(f"--html={f.html} must end in .html: it is the page that is written.")
    if f.html:
        _check_page(f.html)
    _set_mesh(config, f.mesh)
    from bigjax.plan import calibrate
    from bigjax.plan import compile as compile_lib
    from bigjax.train import stages

    config, _ = stages.resolve(config, read_data=False)
    correct = calibrate.read(f.calibrate, chip) if f.calibrate else calibrate.NONE
    if f.search:
        plans = [_search(f, config, correct)]
    else:
        flush = lambda text: print(text, flush=True)
        plans = compile_lib.plans(config, f.topology, f.slices, flush)
    pages = [_Page(plan, config, f.topology, f.slices, correct) for plan in plans]
    for page in pages:
        print(page.text())
    trust = TRUST if CHIPS[chip].timed else TRUST_GPU.format(share=gpu.share())
    if f.calibrate:
        trust += f"\nCorrected by {correct.runs} measured run(s): {correct}."
    print(trust)
    numbers = {**pages[-1].numbers(), "fits": all(plan.fits for plan in plans)}
    last = [json_text.dumps(numbers)] if f.json else []
    if f.html:
        with report.printing_on_failure("".join(last)):
            _write_page(f.html, f"Plan of {f.config or DEFAULT_CONFIG}", pages, trust)
        print(f"Wrote {f.html}")
    print(*last, sep="", end="\n" * len(last))


def _check_page(path: str) -> None:
    """Raises UserError if a page cannot be written, before anything is compiled."""
    file = epath.Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if "://" not in path and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as e:
        raise cannot_write(f"The page {path}", e, "Name another file by --html=FILE") from e


def _write_page(path: str, title: str, pages: "list[_Page]", trust: str) -> None:
    sections = [html.Section(page.title, page.plan, page.text()) for page in pages]
    try:
        content = html.page(title, sections, trust).encode(errors="backslashreplace")
        paths.write_atomically(epath.Path(path), content)
    except OSError as e:
        raise cannot_write(f"The page {path}", e, "Name another file by --html=FILE") from e


def _set_mesh(config, text: str) -> None:
    with config.unlocked():
        for part in filter(None, text.split(",")):
            axis, _, size = part.partition("=")
            if axis not in config.mesh or not re.fullmatch(r"-?\d+", size):
                raise UserError(
                    f"--mesh={text!r}: {part!r} is not AXIS=NUMBER. Axes: {', '.join(config.mesh)}."
                )
            config.mesh[axis] = int(size)


def _search(f, config, correct):
    """Prints the ranking, writes the best layout into config and returns its plan."""
    from bigjax.plan import search

    ranking = search.search(
        config,
        f.topology,
        f.slices,
        f["budget-minutes"].value,
        lambda text: print(text, flush=True),
        correct.expected,
    )
    print(f"\n{'time per step':<22}{'HBM':<12}layout")
    for result in ranking[:10]:
        low, high = map(duration, correct.range(result.plan))
        gib = result.plan.peak_bytes / GIB
        print(f"{f'{low} to {high}':<22}{gib:>5.2f} GiB   {result.candidate}")
    best = ranking[0].candidate
    print("\nIn the config:\n    " + "\n    ".join(best.lines()) + "\n")
    chosen = search.apply(config, best)
    with config.unlocked():
        config.update(chosen)
    return ranking[0].plan


class _Page:
    """A plan as text for people and as numbers for programs."""

    def __init__(self, plan, config, topology: str, slices: int, correct) -> None:
        self.plan, self.config, self.topology, self.slices = plan, config, topology, slices
        self.chip, self.correct = CHIPS[parse(topology)[0]], correct
        predicted = plan.step_seconds is not None
        self.seconds = correct.range(plan) if predicted else None
        self.expected = correct.expected(plan) if predicted else None  # seconds per step

    @property
    def _moves_activations(self) -> bool:
        """Whether activations wait in the memory of the host."""
        return HOST in self.config.model.get("remat", "")

    @property
    def mfu(self) -> tuple[float, float] | None:
        """(lowest, highest) share of the peak that the model's own FLOPs reach; None if unknown."""
        if not self.seconds or not self.plan.model_flops:
            return None
        low, high = self.seconds
        return self._mfu(high), self._mfu(low)

    def _mfu(self, seconds: float) -> float:
        return self.plan.model_flops / (self.plan.devices * self.chip.peak * 1e12) / seconds

    def numbers(self) -> dict:
        plan = self.plan
        return {
            "topology": self.topology,
            "slices": self.slices,
            "mesh": plan.mesh,
            "fits": plan.fits,
            "hbm_gib": _gib(plan.peak_bytes),
            "hbm_limit_gib": _gib(plan.limit_bytes),
            "parameters_gib": _gib(plan.parameter_bytes),
            "optimizer_gib": _gib(plan.optimizer_bytes),
            "frozen_gib": _gib(plan.frozen_bytes),
            "host_gib": _gib(plan.host_bytes + plan.host_activation_bytes),
            "flops": plan.flops,
            "kernel_flops": plan.kernel_flops,
            "collective_bytes": sum(c.bytes for c in plan.collectives),
            "collectives": [c._asdict() for c in plan.collectives],
            "work_seconds": plan.work_seconds,
            "kernel_seconds": plan.kernel_seconds,
            "communication_seconds": plan.communication,
            "step_seconds": self.seconds,
            "expected_seconds": self.expected,
            "mfu": self.mfu,
            f"{plan.unit}_per_sec": self.expected and plan.units / self.expected,
            "compile_seconds": plan.compile_seconds,
            "hbm_bytes": plan.hbm_bytes,
            "schedule": schedule.numbers(plan.schedule) or None,
            "unknown_loops": plan.unknown_loops,
        }

    @property
    def title(self) -> str:
        phase = f", phase {self.plan.phase}" if self.plan.phase else ""
        pod = f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology
        return f"{pod}, {self.plan.devices} devices{phase}"

    def text(self) -> str:
        plan = self.plan
        need = "more than that" if plan.peak_bytes is None else f"{plan.peak_bytes / GIB:.2f} GiB"
        over = (
            ""
            if plan.fits
            else "DOES NOT FIT"
            if plan.peak_bytes is None
            else f"DOES NOT FIT, by {(plan.peak_bytes - plan.limit_bytes) / GIB:.2f} GiB"
        )
        lines = [
            self.title,
            f"  HBM per device {need} of {plan.limit_bytes / GIB:.2f}: {over or 'fits'}",
            f"    parameters   {plan.parameter_bytes / GIB:.3f} GiB",
            f"    optimizer    {plan.optimizer_bytes / GIB:.3f} GiB"
            + (f", in host memory{_NOT_TIMED}" if plan.host_bytes else ""),
        ]
        if plan.frozen_bytes:
            lines.append(f"    frozen       {plan.frozen_bytes / GIB:.3f} GiB")
        if plan.peak_bytes:
            rest = plan.peak_bytes - plan.state_bytes
            lines.append(
                f"    other        {rest / GIB:.3f} GiB: activations, gradients, gathered weights"
                + (_NOT_TIMED if self._moves_activations else "")
            )
        if plan.host_activation_bytes:
            gib = plan.host_activation_bytes / GIB
            lines.append(f"    on the host  {gib:.3f} GiB of activations, for each device")
        if not plan.fits:
            return "\n".join([*lines, "  " + self._advice()])
        if plan.unknown_loops:
            lines.append(
                f"  loops          {plan.unknown_loops} of unknown length (a while loop of the "
                "model?) counted once: the step takes longer than this"
            )
        kernels = f", {plan.kernel_flops / 1e12:,.4g} T in attention kernels"
        lines.append(
            f"  FLOPs          {plan.flops / 1e12:,.4g} T per device and step"
            + (kernels if plan.kernel_flops else "")
        )
        for c in plan.collectives:
            took = "" if c.seconds is None else f", {duration(c.seconds)}"
            lines.append(
                f"  {c.kind:<18} along {c.axes or 'one device'}: {c.bytes / 1e9:,.4g} GB sent{took}"
            )
        lines += (
            self._speed()
            if self.seconds
            else [f"  step           no time is predicted for {parse(self.topology)[0]}"]
        )
        if plan.schedule:
            lines += ["  " + line for line in schedule.lines(plan.schedule)]
        if plan.without:
            lines.append(f"  not included   {plan.without}")
        lines.append(f"  compiled in    {plan.compile_seconds:.0f} s")
        return "\n".join(lines)

    def _speed(self) -> list[str]:
        """The expected speed, and in brackets that at both ends of the range."""
        plan, (low, high), expected = self.plan, self.seconds, self.expected
        ends = self.correct.range_in_words(duration(low), duration(high))
        lines = [
            f"  step           {duration(expected)} ({ends})",
            f"                 work {duration(plan.work_seconds)}, communication "
            f"{duration(plan.communication)}",
            f"  {plan.unit.replace('_', ' ') + '/s':<13}  {plan.units / expected:,.0f} "
            f"({plan.units / low:,.0f}, {plan.units / high:,.0f})",
        ]
        if self.mfu:
            lines.append(
                f"  MFU            {self._mfu(expected):.1%} ({self.mfu[1]:.1%}, {self.mfu[0]:.1%})"
            )
        return lines

    def _advice(self) -> str:
        """Which settings to change so that the plan fits."""
        plan, c = self.plan, self.config
        at_rest = plan.state_bytes + plan.parameter_bytes  # + gradients
        if at_rest > 0.8 * plan.limit_bytes:
            devices = math.ceil(plan.devices * at_rest / (0.8 * plan.limit_bytes))
            return (
                "Parameters, gradients and optimizer state"
                + (", with frozen parts," if plan.frozen_bytes else "")
                + f" alone take {at_rest / GIB:.2f} GiB: shard them over more devices by"
                f" mesh.fsdp (now {c.mesh.fsdp}) or mesh.tensor (now "
                f"{c.mesh.tensor}). Sharded over all of them, {devices} devices would hold them."
            )
        changes = []
        if c.model.get("remat", "full") != "full" and not self._moves_activations:
            changes.append(f"model.remat='full' (now {c.model.remat!r})")
        changes.append(f"train.accumulate={2 * c.train.accumulate} (now {c.train.accumulate})")
        changes.append("a larger mesh.fsdp, mesh.tensor or mesh.sequence")
        return (
            "Activations need most of the memory. To make it fit, set "
            + "; or ".join(changes)
            + ("; or let --search find a layout." if self.chip.timed else ".")
        )


def _gib(n: float | None) -> float | None:
    return n if n is None else n / GIB
