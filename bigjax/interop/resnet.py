"""ResNet and BiT: tensors of transformers, and those of bigjax.models.resnet."""

from typing import Any

from bigjax.errors import UserError
from bigjax.interop import labels
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    Field,
    batch_norm,
    choice,
    convolution,
    dense,
    norm,
    number,
    refuse,
)

_WIDER = 4  # outputs of a bottleneck unit, relative to its inner width
_LABELS = labels.one_or_several("head/bias")
_TASK = {"name": "image_classify"}


def _get_units(config: dict) -> tuple[int, ...]:
    units = config.get("depths", (3, 4, 6, 3))
    valid = isinstance(units, (list, tuple)) and all(type(n) is int and n > 0 for n in units)
    if not valid or not units:
        raise UserError(
            f"config.json: depths is {units!r}; it must be a list of positive integers."
        )
    return tuple(units)


def _put_units(config: dict, value: tuple[int, ...]) -> None:
    config["depths"] = [*value]


_UNITS = Field("units", _get_units, _put_units)
_CHANNELS = number("channels", "num_channels", 3)


def _sizes(width: int, n: int, bottleneck: bool) -> list[int]:
    """hidden_sizes of n stages: of the results of their units."""
    return [(width << i) * (_WIDER if bottleneck else 1) for i in range(n)]


def _width(bottleneck: Any) -> Field:
    """embedding_size, on which hidden_sizes depend. bottleneck: config.json -> bool."""
    own = number("width", "embedding_size", 64)

    def get(config: dict) -> int:
        width, n = own.get(config), len(_get_units(config))
        expected = _sizes(width, n, bottleneck(config))
        sizes = config.get("hidden_sizes", (256, 512, 1024, 2048))
        if list(sizes or ()) != expected:
            raise UserError(
                f"config.json: hidden_sizes is {sizes!r}; with embedding_size={width} and {n} "
                f"depths bigjax only supports {expected}, where each stage doubles the width."
            )
        return width

    def put(config: dict, value: int) -> None:
        own.put(config, value)
        config["hidden_sizes"] = _sizes(value, len(_get_units(config)), bottleneck(config))

    return Field("width", get, put)


def _architectures(kind: str) -> dict[str, Architecture]:
    return {
        f"{kind}ForImageClassification": Architecture(
            ("head",), _TASK, marker="head", labels=_LABELS
        ),
        f"{kind}Model": Architecture((), _TASK, bare=True, labels=_LABELS),
    }


def features(m: dict) -> int:
    """Their number."""
    return _sizes(m["width"], len(m["units"]), m["bottleneck"])[-1]


def _heads(m: dict, n_labels: int) -> dict[str, list[Entry]]:
    return {"head": dense("head", "classifier.1", features(m), n_labels)}


def units(m: dict):
    """(stage, unit, its inputs, inner width, outputs, whether its shortcut is a convolution)."""
    ins = m["width"]
    for i, n in enumerate(m["units"]):
        inner = m["width"] << i
        out = inner * (_WIDER if m["bottleneck"] else 1)
        for j in range(n):
            yield i, j, ins, inner, out, ins != out or (i > 0 and j == 0)
            ins = out


def convolutions(m: dict, ins: int, inner: int, out: int) -> list[tuple[int, int, int]]:
    """(size, inputs, outputs) of a unit's convolutions."""
    if m["bottleneck"]:
        return [(1, ins, inner), (3, inner, inner), (1, inner, out)]
    return [(3, ins, inner), (3, inner, out)]


def bare_convolution(ours: str, theirs: str, size: int, ins: int, outs: int) -> list[Entry]:
    return convolution(ours, theirs, (size, size), ins, outs, bias=False)


def convolved(ours: str, norm_name: str, theirs: str, their_norm: str, sizes) -> list[Entry]:
    """A convolution of these (size, inputs, outputs), and the batch normalisation of its result."""
    size, ins, outs = sizes
    return [
        *bare_convolution(ours, theirs, size, ins, outs),
        *batch_norm(norm_name, their_norm, outs),
    ]


def bit_body(m: dict, stem: str, unit: str, last_norm: str) -> list[Entry]:
    """BiT. stem, last_norm: their names. unit: of unit {j} of stage {i}."""
    entries = bare_convolution("stem", stem, 7, m["channels"], m["width"])
    for i, j, ins, inner, out, shortcut in units(m):
        ours, theirs = f"stage_{i + 1}_unit_{j + 1}", unit.format(i=i, j=j)
        if shortcut:
            at = f"{theirs}.downsample.conv"
            entries += bare_convolution(f"{ours}/shortcut", at, 1, ins, out)
        for k, (size, a, b) in enumerate(convolutions(m, ins, inner, out), 1):
            entries += norm(f"{ours}/norm_{k}", f"{theirs}.norm{k}", a)
            entries += bare_convolution(f"{ours}/conv_{k}", f"{theirs}.conv{k}", size, a, b)
    return entries + norm("norm", last_norm, features(m))


# --- ResNet ----------------------------------------------------------------------------------


def _convolved(ours: str, norm_name: str, theirs: str, *sizes: int) -> list[Entry]:
    names = f"{theirs}.convolution", f"{theirs}.normalization"
    return convolved(ours, norm_name, *names, sizes)


def _resnet_body(m: dict) -> list[Entry]:
    at = "resnet.embedder.embedder"
    entries = _convolved("stem", "stem_norm", at, 7, m["channels"], m["width"])
    for i, j, ins, inner, out, shortcut in units(m):
        ours, theirs = f"stage_{i + 1}_unit_{j + 1}", f"resnet.encoder.stages.{i}.layers.{j}"
        if shortcut:
            names = f"{ours}/shortcut", f"{ours}/shortcut_norm", f"{theirs}.shortcut"
            entries += _convolved(*names, 1, ins, out)
        for k, sizes in enumerate(convolutions(m, ins, inner, out)):
            names = f"{ours}/conv_{k + 1}", f"{ours}/norm_{k + 1}", f"{theirs}.layer.{k}"
            entries += _convolved(*names, *sizes)
    return entries


_IS_BOTTLENECK = lambda config: config.get("layer_type", "bottleneck") == "bottleneck"
_LAYER_TYPE = choice("bottleneck", "layer_type", "bottleneck", {"bottleneck": True, "basic": False})


FAMILY = Family(
    name="resnet",
    fixed={
        "preactivation": False,
        "norm": "batchnorm",
        "norm_eps": 1e-5,
        "standardised": False,
        "stem": "large",
    },
    fields=(_CHANNELS, _UNITS, _LAYER_TYPE, _width(_IS_BOTTLENECK)),
    prefix="resnet.",
    architectures=_architectures("ResNet"),
    body=_resnet_body,
    heads=_heads,
    head_names=r"classifier\.",
    check=lambda config: refuse(
        config,
        {
            "hidden_act": ("relu",),
            "downsample_in_first_stage": (False,),
            "downsample_in_bottleneck": (False,),
        },
    ),
    new_config=lambda m: {"hidden_act": "relu", "downsample_in_bottleneck": False},
    special_tokens=(),
    pixels=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


# --- BiT -------------------------------------------------------------------------------------


def _bit_check(config: dict) -> None:
    refuse(
        config,
        {
            "layer_type": ("preactivation",),
            "hidden_act": ("relu",),
            "global_padding": (None,),
            "embedding_dynamic_padding": (False,),
            "width_factor": (1,),
        },
    )
    n, stride = len(_get_units(config)), config.get("output_stride", 32)
    if n > 1 and stride <= 1 << n:
        raise UserError(
            f"config.json: output_stride is {stride}, which makes the convolutions of the last of "
            f"{n} stages dilated; bigjax only supports {2 << n} or more."
        )


def _bit_notes(config: dict) -> list[str]:
    rate = config.get("drop_path_rate", 0.0)
    return [f"drop_path_rate={rate} is not supported: no unit is dropped in training"] * bool(rate)


BIT = Family(
    name="bit",
    fixed={
        "bottleneck": True,
        "preactivation": True,
        "norm": "groupnorm",
        "norm_eps": 1e-5,
        "standardised": True,
        "stem": "large",
    },
    fields=(
        _CHANNELS,
        _UNITS,
        _width(lambda config: True),
        number("groups", "num_groups", 32),
    ),
    prefix="bit.",
    architectures=_architectures("Bit"),
    body=lambda m: bit_body(
        m, "bit.embedder.convolution", "bit.encoder.stages.{i}.layers.{j}", "bit.norm"
    ),
    heads=_heads,
    head_names=r"classifier\.",
    check=_bit_check,
    notes=_bit_notes,
    limits=lambda m: {"width": (-(-m["width"] // 8) * 8,)},
    new_config=lambda m: {
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,
        "embedding_dynamic_padding": False,
        "width_factor": 1,
        "output_stride": max(32, 2 << len(m["units"])),
    },
    special_tokens=(),
    pixels=((0.5,), (0.5,)),
)
