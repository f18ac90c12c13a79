"""ViT and DINOv2: tensors of transformers, and those of bigjax.models.vit.

The names are those of files, as transformers of all versions writes them; the modules of version 5
have others (`renamed`).
"""

from typing import Any

from bigjax.errors import UserError
from bigjax.interop import labels
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    Field,
    choice,
    convolution,
    dense,
    fused,
    needs_division,
    norm,
    number,
    plain,
    refuse,
    reshaped,
    unused,
)

_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python": "gelu_exact",
    "relu": "relu",
}
_ACTIVATION = choice("activation", "hidden_act", "gelu", _ACTIVATIONS)


def side(ours: str, theirs: str, default: int) -> Field:
    """Height and width: one number, or a list of two equal ones."""
    field = number(ours, theirs, default)

    def get(config: dict) -> int:
        value = config.get(theirs, default)
        if not isinstance(value, (list, tuple)):
            return field.get(config)
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(
                f"config.json: {theirs} is {value!r}; bigjax only supports squares, such as "
                f"{default} or [{default}, {default}]."
            )
        return field.get({theirs: value[0]})

    def put(config: dict, value: int) -> None:
        config[theirs] = [value, value] if isinstance(config.get(theirs), list) else value

    return Field(ours, get, put)


def _fields(patch: int, eps: float) -> tuple[Field, ...]:
    return (
        side("image_size", "image_size", 224),
        number("channels", "num_channels", 3),
        side("patch", "patch_size", patch),
        number("d_model", "hidden_size", 768),
        number("n_layers", "num_hidden_layers", 12),
        number("n_heads", "num_attention_heads", 12),
        number("norm_eps", "layer_norm_eps", eps),
        number("dropout", "hidden_dropout_prob", 0.0),
        number("attention_dropout", "attention_probs_dropout_prob", 0.0),
    )


def _check(config: dict) -> None:
    refuse(config, {"qkv_bias": (True,)})
    width, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if config.get("head_dim") not in (None, width // heads):
        raise UserError(
            f"config.json: head_dim is {config['head_dim']}; bigjax only supports hidden_size / "
            f"num_attention_heads, which is {width // heads}."
        )


# --- Tensors ---------------------------------------------------------------------------------


def positions(m: dict, name: str) -> list[Entry]:
    """One tensor for the position of the class and those of the patches."""
    d, n = m["d_model"], (m["image_size"] // m["patch"]) ** 2
    parts = ("class_position", (d,)), ("position", (n, d))
    return [Entry(name, (1, 1 + n, d), parts, along=1)]


def _embeddings(m: dict, at: str, more: dict[str, list[Entry]]) -> list[Entry]:
    """more: entries after those of these tensors."""
    needs_division(m, "hidden_size", "num_attention_heads")
    d, window = m["d_model"], (m["patch"], m["patch"])
    return [
        *reshaped("class_token", f"{at}.cls_token", (d,), (1, 1, d)),
        *more.get("cls_token", []),
        *positions(m, f"{at}.position_embeddings"),
        *more.get("position_embeddings", []),
        *convolution("patch", f"{at}.patch_embeddings.projection", window, m["channels"], d),
    ]


def _attention(m: dict, ours: str, theirs: str) -> list[Entry]:
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    out = []
    for x in ("query", "key", "value"):
        out += dense(f"{ours}/attention/{x}", f"{theirs}.attention.attention.{x}", d, heads)
    return out + dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense", heads, d)


def _vit_body(m: dict) -> list[Entry]:
    d, out = m["d_model"], _embeddings(m, "vit.embeddings", {})
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"vit.encoder.layer.{i}"
        out += [
            *_attention(m, ours, theirs),
            *norm(f"{ours}/norm_1", f"{theirs}.layernorm_before", d),
            *norm(f"{ours}/norm_2", f"{theirs}.layernorm_after", d),
            *dense(f"{ours}/mlp/up", f"{theirs}.intermediate.dense", d, m["d_ff"]),
            *dense(f"{ours}/mlp/down", f"{theirs}.output.dense", m["d_ff"], d),
        ]
    return out + norm("norm", "vit.layernorm", d)


def _dino_body(m: dict, prefix: str) -> list[Entry]:
    d, width, at = m["d_model"], m["d_ff"], f"{prefix}embeddings"
    more = {"cls_token": unused(f"{at}.mask_token", "F32", 1, d)}  # of pre-training
    if m["registers"]:
        shape = m["registers"], d
        registers = reshaped("registers", f"{at}.register_tokens", shape, (1, *shape))
        more["position_embeddings"] = registers
    out = _embeddings(m, at, more)
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"{prefix}encoder.layer.{i}"
        out += [
            *norm(f"{ours}/norm_1", f"{theirs}.norm1", d),
            *_attention(m, ours, theirs),
            *plain(f"{ours}/scale_1", f"{theirs}.layer_scale1.lambda1", d),
            *norm(f"{ours}/norm_2", f"{theirs}.norm2", d),
        ]
        if m["activation"] == "swiglu":
            first = f"{ours}/mlp/gate", f"{ours}/mlp/up"
            out += fused(first, f"{theirs}.mlp.weights_in", d, width, transposed=True)
            out += dense(f"{ours}/mlp/down", f"{theirs}.mlp.weights_out", width, d)
        else:
            out += dense(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", d, width)
            out += dense(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", width, d)
        out += plain(f"{ours}/scale_2", f"{theirs}.layer_scale2.lambda1", d)
    return out + norm("norm", f"{prefix}layernorm", d)


def _divided(m: dict, prefix: str) -> list[Entry]:
    """The first layers of a SwiGLU as two tensors, as in transformers 5's modules."""
    if m["activation"] != "swiglu":
        return []
    return [
        entry
        for i in range(m["n_layers"])
        for x in ("gate", "up")
        for entry in dense(
            f"stack/layer_{i}/mlp/{x}",
            f"{prefix}encoder.layer.{i}.mlp.{x}_proj",
            m["d_model"],
            m["d_ff"],
        )
    ]


_NEW_ATTENTION = tuple(
    (rf"attention\.{x[0]}_proj\.", f"attention.attention.{x}.") for x in ("query", "key", "value")
) + ((r"attention\.o_proj\.", "attention.output.dense."),)


# --- ViT -------------------------------------------------------------------------------------

_LABELS = labels.one_or_several("head/bias")
_TASK = {"name": "image_classify"}


def _vit_heads(m: dict, n_labels: int) -> dict[str, list[Entry]]:
    d = m["d_model"]
    return {
        "pooler": dense("pre_logits", "vit.pooler.dense", d, d),
        "head": dense("head", "classifier", d, n_labels),
    }


FAMILY = Family(
    name="vit",
    fixed={
        "pooling": "class",
        "position": "learned",
        "registers": 0,
        "layer_scale": 0.0,
        "pre_logits": 0,
    },
    fields=(*_fields(16, 1e-12), number("d_ff", "intermediate_size", 3072), _ACTIVATION),
    prefix="vit.",
    architectures={
        "ViTForImageClassification": Architecture(("head",), _TASK, marker="head", labels=_LABELS),
        "ViTModel": Architecture((), _TASK, bare=True, labels=_LABELS),
    },
    body=_vit_body,
    heads=_vit_heads,
    head_names=r"classifier\.",
    check=_check,
    extra=("pooler",),
    limits=lambda m: {"activation": tuple(dict.fromkeys(_ACTIVATIONS.values()))},
    new_config=lambda m: {"qkv_bias": True},
    special_tokens=(),
    renamed=(
        (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
        *_NEW_ATTENTION,
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ),
    pixels=((0.5,), (0.5,)),
)


# --- DINOv2 ----------------------------------------------------------------------------------


def _get_activation(config: dict) -> str:
    return "swiglu" if config.get("use_swiglu_ffn") else _ACTIVATION.get(config)


def _put_activation(config: dict, value: str) -> None:
    config["use_swiglu_ffn"] = value == "swiglu"
    if value != "swiglu":
        _ACTIVATION.put(config, value)


_RATIO = number("", "mlp_ratio", 4)


def _inner(width: int, ratio: int, swiglu: bool) -> int:
    """The width of the hidden layer of an MLP; a SwiGLU has two thirds, in multiples of 8."""
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if swiglu else width * ratio


def _get_inner(config: dict) -> int:
    ratio = config.get("mlp_ratio", 4)
    if isinstance(ratio, float) and ratio.is_integer():
        config = {**config, "mlp_ratio": int(ratio)}
    swiglu = bool(config.get("use_swiglu_ffn"))
    return _inner(config.get("hidden_size", 768), _RATIO.get(config), swiglu)


def _put_inner(config: dict, value: int) -> None:
    width, swiglu = config["hidden_size"], bool(config.get("use_swiglu_ffn"))
    config["mlp_ratio"] = next(r for r in range(1, value) if _inner(width, r, swiglu) == value)


def _dino_limits(m: dict) -> dict[str, tuple[Any, ...]]:
    swiglu = m["activation"] == "swiglu"
    widths = tuple(_inner(m["d_model"], r, swiglu) for r in range(1, 9))
    scale = m["layer_scale"]
    return {"d_ff": widths, "layer_scale": (scale,) if scale > 0 else (1.0, 1e-5)}


def _dino_check(config: dict) -> None:
    _check(config)
    scale = config.get("layerscale_value", 1.0)
    if not isinstance(scale, (int, float)) or scale <= 0:
        raise UserError(
            f"config.json: layerscale_value is {scale!r}; it must be a positive number, such as "
            "1.0: the factors themselves are tensors."
        )


def _dino_notes(config: dict) -> list[str]:
    rate = config.get("drop_path_rate", 0.0)
    how = "that of bigjax, model.drop_path, grows with the depth of a layer; it is 0"
    return [f"drop_path_rate={rate} is the same in all layers; {how}"] if rate else []


def _dino(name: str, kind: str, registers: Field | None) -> Family:
    prefix = f"{name}."
    fixed = {"pooling": "class_mean", "position": "learned", "pre_logits": 0}
    fields = (
        *_fields(14 if registers is None else 16, 1e-6),
        number("layer_scale", "layerscale_value", 1.0),
        Field("activation", _get_activation, _put_activation),
        Field("d_ff", _get_inner, _put_inner),
        *([registers] if registers else []),
    )
    positive = lambda m: m["registers"] if m["registers"] > 0 else 4
    return Family(
        name=name,
        fixed=fixed if registers else {**fixed, "registers": 0},
        fields=fields,
        prefix=prefix,
        architectures={
            f"{kind}ForImageClassification": Architecture(
                ("head",), _TASK, marker="head", labels=_LABELS
            ),
            f"{kind}Model": Architecture((), _TASK, bare=True, labels=_LABELS),
        },
        body=lambda m: _dino_body(m, prefix),
        heads=lambda m, n: {"head": dense("head", "classifier", 2 * m["d_model"], n)},
        head_names=r"classifier\.",
        check=_dino_check,
        notes=_dino_notes,
        limits=lambda m: {
            **_dino_limits(m),
            **({"registers": (positive(m),)} if registers else {}),
        },
        new_config=lambda m: {"qkv_bias": True},
        special_tokens=(),
        alternatives=lambda m: _divided(m, prefix),
        renamed=(*_NEW_ATTENTION, (r"mlp\.down_proj\.", "mlp.weights_out.")),
        pixels=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )


DINOV2 = _dino("dinov2", "Dinov2", None)
REGISTERS = _dino(
    "dinov2_with_registers",
    "Dinov2WithRegisters",
    number("registers", "num_register_tokens", 4),
)
