"""Training runs on TPUs whose step times were published, and the errors of `bigjax plan` for them.

Needs no compiler: published_steps.py compiles the steps, and what it read in them is kept in
published_steps.json, so that the errors follow from the constants of bigjax/plan/predict.py.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
import statistics
from typing import NamedTuple

from bigjax.plan import chips, predict
from bigjax.plan.search import WINDOWED
from bigjax.train.program import SCOPED_VMEM

# bigjax sets 32 MiB for some chips, where the compiler's default, which ran, was 16.
OF_COMPILER = dict.fromkeys(("v5e", "v5p"), {SCOPED_VMEM: "16384"})
READINGS = Path(__file__).with_name("published_steps.json")
MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/"
RECIPES = (
    "https://github.com/AI-Hypercomputer/tpu-recipes/blob/"
    "c8cfe2f689081d36701a101cd73a70965d80926b/training/"
)
APRIL_2023 = MAXTEXT + "281e04bf31557482e2aa6bb870897e7b7be47f38/README.md"
OCTOBER_2023 = MAXTEXT + "9bc243c9536bbd80268be23f6374a164fa36efbe/README.md"
DECEMBER_2023 = MAXTEXT + "76bd53b0f44caf989c88189afadeb1062f9254f0/MaxText/configs/v5p/README.md"


@dataclasses.dataclass(frozen=True)
class Run:
    """model: fields of our GPT. rows: of a batch, per device. tokens: of a row. seconds: of a step,
    as published or from published TFLOP/s.

    remat, attention and options (of the compiler): ours, nearest to the published ones. kept:
    layers whose results the run keeps for the backward pass, on the device or in host memory, and
    our remat does not: the time of recomputing them is left out.
    """

    name: str
    model: dict
    topology: str
    mesh: dict[str, int]
    rows: int
    tokens: int
    remat: str
    seconds: float
    source: str
    attention: str = "auto"
    kept: tuple[str, ...] = ()
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def chip(self) -> str:
        return chips.parse(self.topology)[0]

    @property
    def compiler_options(self) -> dict[str, str]:
        return {**OF_COMPILER.get(self.chip, {}), **self.options}

    @property
    def fingerprint(self) -> str:
        """Of all that a reading depends on but the program itself: one that was kept for other
        settings, or other figures of the chip, is stale. Attention's share of the peak applies to
        readings, and no run has the kernel for short rows."""
        settings = dataclasses.asdict(self) | {"options": self.compiler_options}
        for name in ("name", "seconds", "source"):
            del settings[name]
        chip = chips.figures(self.topology)._replace(attention=None)._asdict()
        del chip["scores"]
        text = json.dumps([settings, chip], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _maxtext(n_layers: int, d_model: int, d_ff: int, n_heads: int) -> dict:
    """One of the sizes that MaxText published for its own model: ReLU without a gate, heads of 256,
    and tied embeddings. What else it had in April and October 2023, biases of the attention scores
    by distance, has no counterpart in ours; rotary positions take their place."""
    return dict(
        vocab_size=32768,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        head_dim=256,
        position="rotary",
        norm="rmsnorm",
        activation="relu",
        bias=False,
    )


def _llama(n_layers: int, d_model: int, d_ff: int, n_heads: int, vocab_size: int) -> dict:
    return dict(
        vocab_size=vocab_size,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=8,
        position="rotary",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tie_embeddings=False,
    )


def weights(model: dict) -> float:
    """Of its matrix products: each takes part in a product with each token."""
    width = model["d_model"]
    head = model.get("head_dim", width // model["n_heads"])
    attention = 2 * (model["n_heads"] + model.get("n_kv_heads", model["n_heads"])) * head
    inner = (3 if model.get("activation") == "swiglu" else 2) * model.get("d_ff", 4 * width)
    return width * (model["n_layers"] * (attention + inner) + model["vocab_size"])


def _seconds(model: dict, rows: int, tokens: int, teraflops: float, scores: float) -> float:
    """Seconds per step from published TFLOP/s of a device. MaxText counts 6 FLOPs per weight and
    token, and this share of the 12 per pair of positions, layer and element of all heads."""
    heads = model["n_heads"] * model["head_dim"]
    attention = scores * 12 * model["n_layers"] * heads * tokens
    return rows * tokens * (6 * weights(model) + attention) / (teraflops * 1e12)


M16, M22 = _maxtext(32, 5120, 32768, 32), _maxtext(48, 6144, 24576, 24)
M32, M52 = _maxtext(32, 10240, 32768, 32), _maxtext(32, 12288, 49152, 32)
M64, M128 = _maxtext(64, 10240, 32768, 32), _maxtext(64, 10240, 65536, 64)
LLAMA2_70B = _llama(80, 8192, 28672, 64, 32000)
LLAMA3_8B = _llama(32, 4096, 14336, 32, 128256)
LLAMA3_70B = _llama(80, 8192, 28672, 64, 128256)
GPT3_175B = dict(vocab_size=50304, n_layers=96, d_model=12288, n_heads=96)
QKV = tuple(f"stack/attention/{name}" for name in ("query", "key", "value"))
QKV_OUT = (*QKV, "stack/attention/out")
VMEM = {SCOPED_VMEM: "98304"}
NOT_WINDOWED = {WINDOWED: "1000000"}

RUNS = (
    # In April 2023 the scores did not count (MaxText/train.py, line 319), rows had 1,024 tokens and
    # attention was plain XLA; the sizes are in MaxText/configs/1xv4-128.sh and 1xv4-384.sh.
    Run(
        *("MaxText 22B", M22, "v4:4x4x4", {"fsdp": 64}, 16, 1024, "full"),
        *(_seconds(M22, 16, 1024, 156, 0), APRIL_2023, "einsum"),
    ),
    Run(
        *("MaxText 52B", M52, "v4:4x4x12", {"fsdp": 192}, 10, 1024, "full"),
        *(_seconds(M52, 10, 1024, 154, 0), APRIL_2023, "einsum"),
    ),
    # In October 2023 all scores counted (line 78); the sizes are in MaxText/configs/largest_job/.
    Run(
        *("MaxText 16B", M16, "v5e:16x16", {"fsdp": 256}, 6, 2048, "full"),
        *(_seconds(M16, 6, 2048, 120, 1), OCTOBER_2023),
    ),
    Run(
        *("MaxText 32B", M32, "v5e:16x16", {"fsdp": 256}, 4, 2048, "full"),
        *(_seconds(M32, 4, 2048, 132, 1), OCTOBER_2023),
    ),
    Run(
        *("MaxText 64B", M64, "v5e:16x16", {"fsdp": 256}, 2, 2048, "full"),
        *(_seconds(M64, 2, 2048, 118, 1), OCTOBER_2023),
    ),
    Run(
        *("MaxText 128B", M128, "v5e:16x16", {"fsdp": 16, "tensor": 16}, 1, 2048, "full"),
        *(_seconds(M128, 1, 2048, 110, 1), OCTOBER_2023),
    ),
    # In December 2023 half of the scores counted (line 83). `minimal` keeps products with weights.
    Run(
        *("MaxText 32B", M32, "v5p:4x4x4", {"fsdp": 16, "tensor": 4}, 8, 2048, "dots"),
        *(_seconds(M32, 8, 2048, 328, 0.5), DECEMBER_2023),
    ),
    Run(
        *("MaxText 64B", M64, "v5p:4x4x4", {"fsdp": 16, "tensor": 4}, 4, 2048, "dots"),
        *(_seconds(M64, 4, 2048, 323, 0.5), DECEMBER_2023),
    ),
    Run(
        *("MaxText 128B", M128, "v5p:4x4x8", {"fsdp": 16, "tensor": 8}, 2, 2048, "dots"),
        *(_seconds(M128, 2, 2048, 315, 0.5), DECEMBER_2023),
    ),
    # Recipes print seconds. Their settings are in MaxText's benchmarks/, at the tag they name.
    Run(
        *("Llama 3.1 8B", LLAMA3_8B, "v6e:2x4", {"fsdp": 8}, 3, 8192, "full", 3.443),
        RECIPES + "trillium/Llama3.1-8B-MaxText/v6e-8/README.md",
        kept=QKV_OUT,
        options={**NOT_WINDOWED, **VMEM},
    ),
    Run(
        *("Llama 3.1 8B", LLAMA3_8B, "v6e:8x8", {"fsdp": 64}, 5, 8192, "full", 5.652),
        RECIPES + "trillium/Llama3.1-8B-MaxText/v6e-64/README.md",
        kept=QKV_OUT,
        options=VMEM,
    ),
    Run(
        *("Llama 3.1 8B", LLAMA3_8B, "v6e:16x16", {"fsdp": 256}, 4, 8192, "full", 4.546),
        RECIPES + "trillium/Llama3.1-8B-MaxText/v6e-256/README.md",
        kept=QKV_OUT,
        options=VMEM,
    ),
    Run(
        *("Llama 2 70B", LLAMA2_70B, "v6e:16x16", {"fsdp": 256}, 3, 4096, "full", 9.052),
        RECIPES + "trillium/Llama2-70B-MaxText/README.md",
        kept=QKV,
        options=VMEM,
    ),
    Run(
        *("GPT-3 175B", GPT3_175B, "v6e:16x16", {"fsdp": 256}, 3, 2048, "full", 17.182),
        RECIPES + "trillium/GPT3-175B-MaxText/bf16/README.md",
    ),
    Run(
        *("Llama 3.1 70B", LLAMA3_70B, "tpu7x:4x4x4", {"fsdp": 128}, 2, 8192, "full", 12.20),
        RECIPES + "ironwood/README.md",
        kept=(*QKV, "stack/attention"),
        options={
            "xla_tpu_bf16_emission_mode": "NATIVE_EMISSION",
            SCOPED_VMEM: "61440",
        },
    ),
)


class Prediction(NamedTuple):
    """Seconds per step: the range, the expected ones, and the published ones."""

    run: Run
    work: float
    communication: float

    @property
    def range(self) -> tuple[float, float]:
        return predict.step_range(self.work, self.communication)

    @property
    def expected(self) -> float:
        return predict.expected(self.range)

    @property
    def error(self) -> float:
        """Of the expected seconds, relative to the published ones."""
        return self.expected / self.run.seconds - 1


def kept() -> list[dict | None]:
    """What was read in the compiled step of each run; None for those that were not compiled."""
    return json.loads(READINGS.read_text(encoding="utf-8"))


def predictions(readings: list[dict | None] | None = None) -> list[Prediction]:
    """For each run that was read, in order; by default from what is kept."""
    readings = kept() if readings is None else readings
    return [_prediction(run, reading) for run, reading in zip(RUNS, readings) if reading]


def _prediction(run: Run, reading: dict) -> Prediction:
    width = run.model.get("head_dim", run.model["d_model"] // run.model["n_heads"])
    kernels = predict.kernel_seconds(reading["kernel_flops"], chips.CHIPS[run.chip], width)
    work = reading["seconds"] - reading["kept_seconds"]
    work += kernels * (1 - reading["kept_kernels"])
    return Prediction(run, work, reading["communication"])


def table(results: list[Prediction]) -> str:
    """Markdown, with the address of each publication."""
    lines = [
        "| run | chips | rows x tokens per device | published, s | range, s | expected, s "
        "| error |",
        "| --- |" + " --- |" * 6,
    ]
    for p in results:
        low, high = p.range
        mesh = " x ".join(f"{axis} {n}" for axis, n in p.run.mesh.items())
        cells = (
            f"[{p.run.name}]({p.run.source})",
            f"{p.run.topology}, {mesh}",
            f"{p.run.rows} x {p.run.tokens:,}, {p.run.remat}",
            f"{p.run.seconds:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{p.expected:.2f}",
            f"{p.error:+.1%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def median_error(results: list[Prediction]) -> float:
    return statistics.median(abs(p.error) for p in results)


def worst(results: list[Prediction]) -> Prediction:
    return max(results, key=lambda p: abs(p.error))


def summary(results: list[Prediction]) -> str:
    """How many runs on which chips, and the errors of the expected seconds."""
    names = list(dict.fromkeys(p.run.chip for p in results))
    inside = sum(p.range[0] <= p.run.seconds <= p.range[1] for p in results)
    last = worst(results)
    return (
        f"{len(results)} published runs on {', '.join(names[:-1])} and {names[-1]}: median error "
        f"{median_error(results):.1%}, worst {last.error:+.1%} (on {last.run.chip}), {inside} in "
        "the range"
    )


def left_out(results: list[Prediction]) -> str:
    """How much depends on the share of communication that is expected to overlap: the errors of
    each run with the share, in steps of 0.05, for the smallest median error of the others."""

    def error(p: Prediction, share: float) -> float:
        return abs(predict.expected(p.range, share) / p.run.seconds - 1)

    shares, errors = [], []
    for p in results:
        others = [q for q in results if q is not p]
        median = lambda share: statistics.median(error(q, share) for q in others)
        shares.append(min((i / 20 for i in range(21)), key=median))
        errors.append(error(p, shares[-1]))
    return (
        "With the share of overlap that gives the smallest median error of all other runs, "
        f"{min(shares):.2f} to {max(shares):.2f}, the median error of the runs left out is "
        f"{statistics.median(errors):.1%}, the largest {max(errors):.1%}."
    )


def result(results: list[Prediction]) -> dict:
    """The line of JSON. ours: predicted over published seconds, the median."""
    ours = statistics.median(p.expected / p.run.seconds for p in results)
    return {
        "name": "published_steps",
        "ours": ours,
        "theirs": 1.0,
        "ratio": ours,
        "unit": "expected over published seconds per step, median",
        "median_error": median_error(results),
        "worst_error": worst(results).error,
    }
