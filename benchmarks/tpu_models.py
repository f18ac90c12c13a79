"""The models of benchmarks/tpu_plan.py, as configs of ours and as settings of MaxText."""

import dataclasses
import math

from bigjax import config as config_lib
from bigjax import modules
from bigjax.plan import chips
from bigjax.plan.search import WINDOWED

TOKENS = 2048  # of a row
OFF = {WINDOWED: "1000000"}
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
    """name: in MODELS. spec: our config; changes: of its keys. theirs: the same model and pod as
    MaxText's settings. rows: of a batch. layouts: of both sides. searched: what `bigjax plan
    --search` had ranked first when its time was up (1.3b: 16 minutes; the larger ones: 45 minutes
    of an earlier version). brief: compiled only with the last flags of tpu_plan.py, which were the
    best of the other models."""

    name: str
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

    def __str__(self) -> str:
        return f"{self.name}, {self.rows} rows of {self.tokens}, {self.topology}"


_MODELS = (
    Model(
        "1.3b",
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
    Model(
        "7b",
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
    Model(
        "7b-4096",
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
    Model(
        "175b",
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
)
MODELS = {model.name: model for model in _MODELS}


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
