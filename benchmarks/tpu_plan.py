"""bigjax and MaxText, compiled for pods of TPUs and read by one program; without a TPU.

    pip install -e '.[plan]'
    python benchmarks/tpu_plan.py [--json] [--models=1.3b,7b]

Both sides train the same model on the same batch: AdamW, float32 parameters, bfloat16 computation,
splash attention, the same jax and TPU compiler. Each step is compiled ahead of time, MaxText's by
its own train_compile.py in an environment of its own (Python 3.12, from PyPI; see
maxtext_environment.py). The walker of `bigjax plan` reads both programs. A compilation takes
minutes and is cached.

Rows: each layout and rematerialisation on both sides, with the compiler's defaults, without
windowed einsum, and with more memory on the chip for each operation, then with the best of these
for each side; MaxText's embedding as a product with one-hot rows (`use_iota_embed`), which costs
FLOPs that a lookup does not; and the defaults of each side: MaxText's own layout,
rematerialisation and flags, and what `bigjax plan --search` finds.

Seconds are predictions for a device: of work without attention kernels and communication, of
kernels (by their schedules), of communication (one after the other), and of the step, from complete
overlap of communication to none. The ratio is of the first: MaxText's seconds over ours, so that
more than 1 means that bigjax is faster. How far to trust them: `bigjax plan` says. What is read is
kept in tpu_plan.json, for the tables in docs/benchmarks.md. The line of JSON is for the row of
equal layouts and best flags with the lowest ratio.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
import sys

from bigjax.plan import chips

chips.before_jax()

import jax  # noqa: E402
from maxtext_environment import MAXTEXT  # noqa: E402
from tpu_models import MODELS, OFF, Layout, Model, our_config, their_settings  # noqa: E402
import tpu_sides  # noqa: E402

from bigjax.errors import RunError, UserError  # noqa: E402
from bigjax.plan import compilers  # noqa: E402
from bigjax.train.program import SCOPED_VMEM  # noqa: E402

KEPT = Path(__file__).with_name("tpu_plan.json")
FLAGS = {
    "the compiler's defaults": {},
    "no windowed einsum": OFF,
    "no windowed einsum, 32 MiB of VMEM": {**OFF, SCOPED_VMEM: "32768"},
}
USUAL = {SCOPED_VMEM: "16384"}  # what MaxText gets by default; bigjax sets 32 MiB


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the walker reads in a step: seconds, and GiB of HBM. at_peak: of the FLOPs of `work`."""

    work: float
    at_peak: float
    kernels: float
    communication: float
    step: tuple[float, float]
    hbm: float

    @property
    def middle(self) -> float:
        return sum(self.step) / 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison. A side is None if its step does not fit, or if MaxText is not available.
    headline: whether its ratio may be the one of the line of JSON."""

    name: str
    theirs: Reading | None
    ours: Reading | None
    headline: bool = False

    @property
    def ratio(self) -> float | None:
        return self.theirs.work / self.ours.work if self.theirs and self.ours else None


class Comparison:
    """Compiles the steps of a model on both sides. missing: why MaxText is not available, or ''."""

    def __init__(self, model: Model, missing: str) -> None:
        self.model, self.missing = model, missing
        self.parameters: dict[str, int] = {}

    def ours(self, layout: Layout, options: dict[str, str]) -> Reading | None:
        step = tpu_sides.ours(our_config(self.model, layout, options), self.model.topology)
        return self._reading("bigjax", step)

    def theirs(self, layout: Layout | None, options: dict, iota: bool | None) -> Reading | None:
        if self.missing:
            return None
        step = tpu_sides.theirs(their_settings(self.model, layout, options, iota))
        return self._reading("MaxText", step)

    def _reading(self, side: str, step: tpu_sides.Step) -> Reading | None:
        self.parameters[side] = step.parameters
        if len({*self.parameters.values()}) > 1:
            raise SystemExit(f"The models differ in their parameters: {self.parameters}")
        return step.text and reading(step, self.model.topology)

    def rows(self) -> list[Row]:
        rows = [row for layout in self.model.layouts for row in self._equal(layout)]
        searched = self.model.searched
        own = Row(
            f"own defaults (MaxText's; bigjax: {searched}"
            + (", no windowed einsum)" if searched.options else ")"),
            self.theirs(None, {}, None),
            self.ours(searched, searched.options),
        )
        return [*rows, own]

    def _equal(self, layout: Layout) -> list[Row]:
        """A layout on both sides, with each of FLAGS, and with the best of each side; and MaxText's
        other form of embedding."""
        if self.model.brief:
            name, flags = [*FLAGS.items()][-1]
            sides = self.theirs(layout, flags, False), self.ours(layout, flags)
            return [Row(f"{layout}, {name}", *sides, headline=True)]
        rows = [
            Row(
                f"{layout}, {name}",
                self.theirs(layout, flags, False),
                self.ours(layout, USUAL | flags),
            )
            for name, flags in FLAGS.items()
        ]
        best = [
            min((r for r in side if r), key=lambda r: r.middle, default=None)
            for side in ([row.theirs for row in rows], [row.ours for row in rows])
        ]
        iota = self.theirs(layout, OFF, True)
        return [
            *rows,
            Row(f"{layout}, best flags of each", *best, headline=True),
            Row(f"{layout}, no windowed einsum, use_iota_embed", iota, rows[1].ours),
        ]


def reading(step: tpu_sides.Step, topology: str) -> Reading:
    costs, chip = step.costs(topology), chips.figures(topology)
    return Reading(
        costs.seconds,
        costs.flops / (chip.peak * 1e12),
        costs.kernel_seconds,
        costs.communication,
        costs.step,
        step.peak_bytes / chips.GIB,
    )


def keep(name: str, rows: list[Row]) -> None:
    """Writes the rows of a model into KEPT."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[name] = [dataclasses.asdict(row) for row in rows]
    text = json.dumps({name: kept[name] for name in MODELS if name in kept}, indent=1)
    KEPT.write_text(text + "\n", encoding="utf-8")


def kept(name: str) -> list[Row]:
    """The rows of a model in KEPT."""
    rows = json.loads(KEPT.read_text(encoding="utf-8"))[name]
    side = lambda fields: fields and Reading(**fields | {"step": tuple(fields["step"])})
    return [Row(r["name"], side(r["theirs"]), side(r["ours"]), r["headline"]) for r in rows]


def table(model: Model, rows: list[Row]) -> str:
    """Markdown, each cell with MaxText's value and then ours."""
    lines = [
        f"| {model}: MaxText, bigjax | work, s | ratio | FLOPs at peak, s | kernels, s "
        "| communication, s | step, s | HBM, GiB |",
        "| --- |" + " --- |" * 7,
    ]
    for row in rows:
        sides = row.theirs, row.ours
        cell = lambda text: ", ".join(text(r) if r else "-" for r in sides)
        cells = (
            row.name,
            cell(lambda r: f"{r.work:.4f}"),
            f"{row.ratio:.3f}" if row.ratio else "-",
            cell(lambda r: f"{r.at_peak:.4f}"),
            cell(lambda r: f"{r.kernels:.4f}"),
            cell(lambda r: f"{r.communication:.3f}"),
            cell(lambda r: f"{r.step[0]:.3f} to {r.step[1]:.3f}"),
            cell(lambda r: f"{r.hbm:.2f}"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def result(rows: list[tuple[str, Row]], missing: str) -> dict:
    """The line of JSON of rows with the names of their models."""
    rows = [(model, row) for model, row in rows if row.headline and row.ours]
    model, row = min(rows, key=lambda pair: pair[1].ratio or math.inf)
    return {
        "name": "tpu_plan",
        "ours": 1 / row.ours.work,
        "theirs": row.theirs and 1 / row.theirs.work,
        "ratio": row.ratio,
        "unit": f"steps/s of work without kernels and communication: {model}, {row.name}",
        **({"skipped": missing} if missing else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--models", default="1.3b,7b", help=f"some of {','.join(MODELS)}")
    args = parser.parse_args()
    names = args.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"--models: {', '.join(unknown)} is not one of {', '.join(MODELS)}")
    rows = []
    try:
        compilers.check(compilers.TPU)
        missing = tpu_sides.missing()
        print(
            f"MaxText is skipped: {missing}."
            if missing
            else f"{MAXTEXT} and bigjax, both with jax {jax.__version__} and "
            f"{compilers.version(compilers.TPU)}",
            flush=True,
        )
        for name in names:
            model = MODELS[name]
            print(f"Compiling {model}", flush=True)
            compared = Comparison(model, missing).rows()
            if not missing:
                keep(name, compared)
            print(f"\n{table(model, compared)}\n", flush=True)
            rows += [(name, row) for row in compared]
    except (RunError, UserError) as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    if args.json:
        print(json.dumps(result(rows, missing)))


if __name__ == "__main__":
    main()
