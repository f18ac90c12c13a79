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
overlap of communication to none. The ratio is of the first: MaxText's seconds over
ours, so that more than 1 means that bigjax is faster. How far to trust them: `bigjax plan` says.
The line of JSON is for the row of equal layouts and best flags with the lowest ratio.
"""

import argparse
import dataclasses
import json
import math
import sys

from bigjax.plan import chips

chips.before_jax()

import jax  # noqa: E402
from maxtext_environment import MAXTEXT  # noqa: E402
import tpu_sides  # noqa: E402

from bigjax import config as config_lib  # noqa: E402
from bigjax import modules  # noqa: E402
from bigjax.errors import RunError, UserError  # noqa: E402
from bigjax.plan import compilers  # noqa: E402
from bigjax.plan.search import WINDOWED  # noqa: E402
from bigjax.train.program import SCOPED_VMEM  # noqa: E402

TOKENS = 2048  # of a row
OFF = {WINDOWED: "1000000"}
FLAGS = {
    "the compiler's defaults": {},
    "no windowed einsum": OFF,
    "no windowed einsum, 32 MiB of VMEM": {**OFF, SCOPED_VMEM: "32768"},
}
USUAL = {SCOPED_VMEM: "16384"}  # what MaxText gets by default; bigjax sets 32 MiB
REMAT = {"full": "full", "dots": "minimal_with_context"}  # ours: MaxText's that keeps the same
THEIRS = (
    "run_name=tpu_plan",
    "base_output_directory=unused",
    "dataset_type=synthetic",
    "enable_checkpointing=false",
    "compile_topology_num_slices=1",
    "override_model_config=true",
    "opt_type=adamw",
    "attention=flash",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """mesh: sizes of axes. remat: as in ours. options: of the compiler."""

    mesh: dict[str, int]
    remat: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return " x ".join(f"{axis} {n}" for axis, n in self.mesh.items()) + f", {self.remat} remat"


@dataclasses.dataclass(frozen=True)
class Model:
    """spec: our config; changes: of its keys. theirs: the same model and pod as MaxText's settings.
    rows: of a batch. layouts: of both sides. searched: what `bigjax plan --search` had ranked first
    when its time was up (1.3b: 16 minutes; the larger ones: 45 minutes of an earlier version).
    brief: compiled only with the last of FLAGS, which was the best of the other models."""

    spec: str
    changes: dict
    topology: str
    rows: int
    theirs: tuple[str, ...]
    layouts: tuple[Layout, ...]
    searched: Layout
    tokens: int = TOKENS
    brief: bool = False

    @property
    def devices(self) -> int:
        return math.prod(chips.parse(self.topology)[1])


MODELS = {
    "1.3b": Model(
        "configs/gpt/gpt3.py:1.3b",
        {"model.vocab_size": 51200},
        "v5e:4x4",
        64,
        (
            "compile_topology=v5e-16",
            "decoder_block=gpt3",
            "base_emb_dim=2048",
            "base_num_query_heads=16",
            "base_num_kv_heads=16",
            "base_mlp_dim=8192",
            "base_num_decoder_layers=24",
            "head_dim=128",
            "vocab_size=51200",
            f"trainable_position_size={TOKENS}",
            "mlp_activations=['gelu']",
            "enable_dropout=false",
            "logits_via_embedding=true",
            "normalize_embedding_logits=false",
            "fused_qkv=true",
        ),
        (Layout({"fsdp": 16}, "full"), Layout({"fsdp": 16}, "dots")),
        Layout({"data": 2, "fsdp": 8}, "dots"),
    ),
    "7b": Model(
        "configs/gpt/llama2.py:7b",
        {"data.seq_len": TOKENS},
        "v5e:16x16",
        256,
        ("compile_topology=v5e-256", "model_name=llama2-7b"),
        (
            Layout({"fsdp": 256}, "full"),
            Layout({"data": 8, "fsdp": 16, "tensor": 2}, "dots"),
        ),
        Layout({"data": 8, "fsdp": 16, "tensor": 2}, "dots"),
    ),
    "7b-4096": Model(
        "configs/gpt/llama2.py:7b",
        {},
        "v5p:4x4x4",
        256,
        ("compile_topology=v5p-128", "model_name=llama2-7b"),
        (Layout({"fsdp": 64}, "dots"),),
        Layout({"fsdp": 64}, "dots"),
        tokens=4096,
        brief=True,
    ),
    "175b": Model(
        "configs/gpt/gpt3.py:175b",
        {},
        "v5p:8x8x8",
        512,
        (
            "compile_topology=v5p-1024",
            "model_name=gpt3-175b",
            f"trainable_position_size={TOKENS}",
        ),
        (
            Layout({"fsdp": 64, "tensor": 8}, "full"),
            Layout({"data": 2, "fsdp": 64, "tensor": 4}, "dots"),
        ),
        Layout({"data": 2, "fsdp": 64, "tensor": 4}, "dots", OFF),
        brief=True,
    ),
}


def our_config(model: Model, layout: Layout, options: dict[str, str]):
    """The config with a layout, and with flags of the compiler."""
    config = config_lib.load_file(model.spec)
    changes = {
        **model.changes,
        **{f"mesh.{axis}": layout.mesh.get(axis, 1) for axis in config.mesh},
        "model.remat": layout.remat,
        "data.packing": True,  # MaxText's batches have segments and positions
        "train.batch_size": model.rows,
        "train.accumulate": 1,
        "train.compiler_options": options,
    }
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    modules.fill(config)
    return config


def their_settings(
    model: Model, layout: Layout | None, options: dict[str, str], iota: bool | None = None
) -> list[str]:
    """KEY=VALUE of MaxText. layout: None for its default layout and rematerialisation. iota: None
    for its default."""
    settings = [
        *THEIRS,
        f"max_target_length={model.tokens}",
        *model.theirs,
        f"per_device_batch_size={model.rows / model.devices:g}",
    ]
    if layout:
        sizes = {"data": 1, "fsdp": 1, "tensor": 1, **layout.mesh}
        settings += [f"ici_{axis}_parallelism={n}" for axis, n in sizes.items()]
        settings += [f"remat_policy={REMAT[layout.remat]}"]
        if len(layout.mesh) > 1:
            settings += ["allow_split_physical_axes=true"]
    if iota is not None:
        settings += [f"use_iota_embed={str(iota).lower()}"]
    if options:
        flags = " ".join(f"--{name}={value}" for name, value in options.items())
        settings += [f"compile_xla_flags={flags}"]
    return settings


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


def table(name: str, rows: list[Row]) -> str:
    """Markdown, each cell with MaxText's value and then ours."""
    lines = [
        f"| {name} | work, s | ratio | FLOPs at peak, s | kernels, s | communication, s "
        "| step, s | HBM, GiB |",
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
            about = f"{name}, {model.rows} rows of {model.tokens}, {model.topology}"
            print(f"Compiling {about}", flush=True)
            comparison = Comparison(model, missing)
            compared = comparison.rows()
            print(f"\n{table(f'{about}: MaxText, bigjax', compared)}\n", flush=True)
            rows += [(name, row) for row in compared]
    except (RunError, UserError) as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    if args.json:
        print(json.dumps(result(rows, missing)))


if __name__ == "__main__":
    main()
