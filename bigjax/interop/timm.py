"""Models of timm: a config.json that names an architecture, and tensors with timm's names.

Only architectures are read whose computation follows from their name and the shapes of their
tensors: ViT, DeiT and DINOv2 with the features of the class token, ResNet with batch normalisation,
and BiT. They are only imported: an export writes the format of transformers.
"""

from collections.abc import Mapping
import json
import math
import re
from typing import Any, NamedTuple

from bigjax.errors import UserError
from bigjax.interop import labels
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    convolution,
    dense,
    fused,
    norm,
    plain,
    reshaped,
)
from bigjax.interop.resnet import bit_body, convolutions, convolved, features, units
from bigjax.interop.vit import positions

# depth, width, heads, width of the MLP
SIZES = {
    "tiny": (12, 192, 3, 768),
    "small": (12, 384, 6, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
    "huge": (32, 1280, 16, 5120),
    "giant": (40, 1408, 16, 6144),
}
WIDTH = 64  # of the first stage of a ResNet
UNITS = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
_VIT = re.compile(r"(vit|deit|deit3)_([a-z]+)_patch(\d+)_(?:reg(\d)_)?(\d+|dinov2)")
_RESNET = re.compile(r"resnet(18|34|50|101|152)")
_BIT = re.compile(r"resnetv2_(50|101|152)x(\d)_bitm?")
_KNOWN = (
    "vit_SIZE_patchP_N, deit_SIZE_patchP_N, deit3_SIZE_patchP_N, vit_SIZE_patch14_dinov2, "
    "vit_SIZE_patch14_reg4_dinov2 (SIZE: " + ", ".join(SIZES) + "; DINOv2: small, base, large), "
    "resnet18 to resnet152, resnetv2_50x1_bit to resnetv2_152x4_bit"
)
_ARGUMENTS = ("img_size", "num_classes", "in_chans", "global_pool")  # which are seen elsewhere too


class Opened(NamedTuple):
    """What config.json and the shapes of tensors say.

    name: config.model.name. fields: of config.model. config: with the labels, as transformers names
    them. processor: the content of a preprocessor_config.json of the same meaning.
    """

    name: str
    family: Family
    architecture: str
    config: dict
    fields: dict[str, Any]
    processor: bytes


def is_config(config: Any) -> bool:
    """Whether a config.json is one of timm."""
    return isinstance(config, dict) and (
        isinstance(config.get("architecture"), str) and "model_type" not in config
    )


def opened(config: dict, shapes: Mapping[str, tuple[int, ...]]) -> Opened:
    """The model of a folder. Raises UserError, naming the architecture or tensors, where it is not
    certain that the mapping is right."""
    architecture, n = config["architecture"], config.get("num_classes") or 0
    name, family, fields = _model(architecture, shapes)
    arguments = config.get("model_args") or {}
    extra = {k: v for k, v in arguments.items() if k not in _ARGUMENTS}
    if extra:
        raise UserError(
            f"config.json: model_args has {', '.join(f'{k}={v!r}' for k, v in extra.items())}, "
            f"which changes the architecture {architecture!r}. Such a model is not imported."
        )
    pool = arguments.get("global_pool", config.get("global_pool", ""))
    if pool not in ("", "token" if name == "vit" else "avg"):
        raise UserError(
            f"config.json: global_pool is {pool!r}; of {architecture!r} bigjax only supports "
            f"{'token' if name == 'vit' else 'avg'!r}."
        )
    head = "classifier" if n else "body"
    entries = {e.name: e for e in family.entries(head, {**fields, "name": name}, n or 2)}
    lost = sorted(set(shapes) - set(entries))
    absent = sorted(name for name, e in entries.items() if name not in shapes and e.parts)
    if lost or absent:
        what = [f"has {', '.join(lost[:5])}"] if lost else []
        what += [f"lacks {', '.join(absent[:5])}"] if absent else []
        raise UserError(
            f"The folder {' and '.join(what)}, unlike timm's {architecture!r}: it is another "
            "model, which bigjax cannot map with certainty. Convert it to Hugging Face's format."
        )
    names = {f"{i}": f"{text}" for i, text in enumerate(_label_names(config, n))}
    labelled = {"num_labels": max(n, 2), **({"id2label": names} if names else {})}
    return Opened(name, family, head, labelled, fields, _processor(config, architecture))


def _label_names(config: dict, n: int) -> list[str]:
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, dict):
        names = [names[k] for k in sorted(names, key=int)]
    return list(names) if names and len(names) == n else []


def _processor(config: dict, architecture: str) -> bytes:
    given = config.get("pretrained_cfg") or {}
    size = given.get("input_size") or ()
    if len(size) != 3 or size[1] != size[2] or "mean" not in given or "std" not in given:
        raise UserError(
            "config.json: pretrained_cfg needs a square input_size, a mean and a std, which the "
            f"images of {architecture!r} are shown by; it is {given!r}."
        )
    crop = given.get("crop_pct", 0.875)
    if not isinstance(crop, (int, float)) or not 0 < crop <= 1:
        raise UserError(
            f"config.json: pretrained_cfg's crop_pct is {crop!r}; it must be above 0 and at most 1."
        )
    side = {"height": size[1], "width": size[1]}
    edge = math.floor(size[1] / crop)
    if given.get("crop_mode", "center") == "squash":
        view: dict[str, Any] = {"size": {"height": edge, "width": edge}}
    else:
        view = {"size": {"shortest_edge": edge}}
    processor = {
        "image_processor_type": "BitImageProcessor",
        **view,
        "do_center_crop": True,
        "crop_size": side,
        "image_mean": list(given["mean"]),
        "image_std": list(given["std"]),
        "resample": {"bilinear": 2, "bicubic": 3}.get(given.get("interpolation", "bicubic"), 3),
    }
    return json.dumps(processor).encode()


def _model(architecture: str, shapes) -> tuple[str, Family, dict[str, Any]]:
    """(config.model.name, its table, fields of config.model)."""
    if match := _VIT.fullmatch(architecture):
        kind, size, patch, registers, image = match.groups()
        dino = image == "dinov2"
        if size in SIZES and (not registers or dino) and not (dino and size in ("huge", "giant")):
            scaled = dino or kind == "deit3"
            without = kind == "deit3" or bool(registers)
            fields = _vit_fields(shapes, SIZES[size], int(patch), without)
            fields |= {"registers": int(registers or 0), "layer_scale": 1e-5 if scaled else 0.0}
            return "vit", VIT_WITHOUT if without else VIT, fields
    if match := _RESNET.fullmatch(architecture):
        n = match[1]
        fields = {
            "units": UNITS[n],
            "bottleneck": int(n) >= 50,
            "width": WIDTH,
            "norm": "batchnorm",
        }
        return "resnet", RESNET, {**fields, **_channels(shapes, "conv1.weight")}
    if match := _BIT.fullmatch(architecture):
        fields = {
            "units": UNITS[match[1]],
            "bottleneck": True,
            "width": WIDTH * int(match[2]),
            "norm": "groupnorm",
            "preactivation": True,
            "standardised": True,
        }
        return "resnet", BIT, {**fields, **_channels(shapes, "stem.conv.weight")}
    raise UserError(
        f"config.json: the architecture {architecture!r} of timm is not one that bigjax can map "
        f"with certainty; supported are {_KNOWN}. Convert it to Hugging Face's format, if "
        "transformers has such a model."
    )


def _channels(shapes, name: str) -> dict[str, int]:
    return {"channels": shapes[name][1]} if len(shapes.get(name, ())) == 4 else {"channels": 3}


def _vit_fields(shapes, sizes, patch: int, without: bool) -> dict[str, Any]:
    """without: the class has no position. The size of images follows from the positions."""
    depth, width, heads, inner = sizes
    n = shapes.get("pos_embed", (1, 0, width))[1] - (not without)
    grid = math.isqrt(max(n, 1))
    return {
        "image_size": grid * patch,
        **_channels(shapes, "patch_embed.proj.weight"),
        "patch": patch,
        "d_model": width,
        "n_layers": depth,
        "n_heads": heads,
        "d_ff": inner,
        "pooling": "class",
        "norm_eps": 1e-6,
        "activation": "gelu_exact",
    }


# --- Tensors ---------------------------------------------------------------------------------


def _vit_body(m: dict, without: bool) -> list[Entry]:
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    n, window = (m["image_size"] // m["patch"]) ** 2, (m["patch"], m["patch"])
    out = reshaped("class_token", "cls_token", (d,), (1, 1, d))
    if m["registers"]:
        shape = m["registers"], d
        out += reshaped("registers", "reg_token", shape, (1, *shape))
    if without:
        out += reshaped("position", "pos_embed", (n, d), (1, n, d))
    else:
        out += positions(m, "pos_embed")
    out += convolution("patch", "patch_embed.proj", window, m["channels"], d)
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"blocks.{i}"
        qkv = tuple(f"{ours}/attention/{x}" for x in ("query", "key", "value"))
        out += [
            *norm(f"{ours}/norm_1", f"{theirs}.norm1", d),
            *fused(qkv, f"{theirs}.attn.qkv", d, heads, transposed=True),
            *dense(f"{ours}/attention/out", f"{theirs}.attn.proj", heads, d),
            *norm(f"{ours}/norm_2", f"{theirs}.norm2", d),
            *dense(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", d, m["d_ff"]),
            *dense(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", m["d_ff"], d),
        ]
        for k in (1, 2) if m["layer_scale"] else ():
            out += plain(f"{ours}/scale_{k}", f"{theirs}.ls{k}.gamma", d)
    return out + norm("norm", "norm", d)


def _resnet_body(m: dict) -> list[Entry]:
    out = convolved("stem", "stem_norm", "conv1", "bn1", (7, m["channels"], m["width"]))
    for i, j, ins, inner, outs, shortcut in units(m):
        ours, theirs = f"stage_{i + 1}_unit_{j + 1}", f"layer{i + 1}.{j}"
        for k, sizes in enumerate(convolutions(m, ins, inner, outs), 1):
            names = f"{ours}/conv_{k}", f"{ours}/norm_{k}", f"{theirs}.conv{k}", f"{theirs}.bn{k}"
            out += convolved(*names, sizes)
        if shortcut:
            at = f"{theirs}.downsample"
            names = f"{ours}/shortcut", f"{ours}/shortcut_norm", f"{at}.0", f"{at}.1"
            out += convolved(*names, (1, ins, outs))
    return out


def _family(name: str, body, head, zeros=lambda m: {}) -> Family:
    """zeros: {parameter: shape} of those that such a model does without."""
    task, named = {"name": "image_classify"}, labels.one_or_several("head/bias")
    return Family(
        name=f"timm_{name}",
        fields=(),
        architectures={
            "classifier": Architecture(("head",), task, marker="head", labels=named),
            "body": Architecture((), task, labels=named),
        },
        body=body,
        heads=lambda m, n: {"head": head(m, n)},
        zeros=zeros,
        pixels=((0.5,), (0.5,)),
    )


_linear = lambda m, n: dense("head", "head", m["d_model"], n)
VIT = _family("vit", lambda m: _vit_body(m, False), _linear)
VIT_WITHOUT = _family(
    "vit_without",
    lambda m: _vit_body(m, True),
    _linear,
    lambda m: {"class_position": (m["d_model"],)},
)
RESNET = _family("resnet", _resnet_body, lambda m, n: dense("head", "fc", features(m), n))
BIT = _family(
    "bit",
    lambda m: bit_body(m, "stem.conv", "stages.{i}.blocks.{j}", "norm"),
    lambda m, n: convolution("head", "head.fc", (1, 1), features(m), n, flat=True),
)
