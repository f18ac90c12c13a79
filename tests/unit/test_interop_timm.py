"""Models of timm: the tensors of the frozen references of transformers, under timm's names, give
the same parameters; what is not certain is refused. tests/parity/check_timm.py compares outputs."""

import json
import re

import jax
import numpy as np
import pytest

from bigjax import interop
from bigjax.errors import UserError
from bigjax.interop import timm
from bigjax.layers.params import unbox
from bigjax.models import vit
from bigjax.train import export_model, import_model, init_from
from bigjax.train import workdir as workdir_lib
from tests.unit.test_interop_vision import reference, write

CFG = dict(
    input_size=[3, 28, 28],
    mean=[0.4, 0.5, 0.6],
    std=[0.2, 0.3, 0.4],
    crop_pct=0.875,
    interpolation="bicubic",
)
# (a pattern in transformers' names, timm's)
RENAMED = {
    "vit": (
        (r"vit\.embeddings\.cls_token", "cls_token"),
        (r"vit\.embeddings\.position_embeddings", "pos_embed"),
        (r"vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"vit\.encoder\.layer", "blocks"),
        (r"attention\.output\.dense", "attn.proj"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
        (r"vit\.layernorm", "norm"),
        ("classifier", "head"),
    ),
    "resnet": (
        (r"resnet\.embedder\.embedder\.convolution", "conv1"),
        (r"resnet\.embedder\.embedder\.normalization", "bn1"),
        (r"resnet\.encoder\.stages\.0\.layers", "layer1"),
        (r"resnet\.encoder\.stages\.1\.layers", "layer2"),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
        *((rf"layer\.{k}\.convolution", f"conv{k + 1}") for k in range(3)),
        *((rf"layer\.{k}\.normalization", f"bn{k + 1}") for k in range(3)),
        (r"classifier\.1", "fc"),
    ),
    "bit": (
        (r"bit\.embedder\.convolution", "stem.conv"),
        (r"bit\.encoder\.stages\.(\d)\.layers", r"stages.\1.blocks"),
        (r"bit\.norm", "norm"),
        (r"classifier\.1", "head.fc"),
    ),
}
ARCHITECTURES = {
    "vit": "vit_nano_patch7_28",
    "resnet": "resnet50",
    "bit": "resnetv2_50x1_bitm",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes of the frozen references, which timm has not."""
    monkeypatch.setitem(timm.SIZES, "nano", (2, 24, 3, 40))
    monkeypatch.setitem(timm.UNITS, "50", (2, 1))
    monkeypatch.setattr(timm, "WIDTH", 8)


def tensors_of(name: str) -> dict:
    out = {}
    for key, x in reference(name)[1].items():
        for pattern, new in RENAMED[name]:
            key = re.sub(pattern, new, key)
        out[key] = x
    for key in [k for k in out if "attention.attention.query" in k]:
        parts = [key.replace("query", x) for x in ("query", "key", "value")]
        fused = np.concatenate([out.pop(part) for part in parts])
        out[key.replace("attention.attention.query", "attn.qkv")] = fused
    if name == "bit":
        out["head.fc.weight"] = out["head.fc.weight"][:, :, None, None]
    return out


def config_of(name: str, **changes) -> dict:
    config = dict(
        architecture=ARCHITECTURES[name],
        num_classes=3,
        num_features=24,
        global_pool="token" if name == "vit" else "avg",
        label_names=["cat", "dog", "owl"],
        pretrained_cfg=CFG,
    )
    return {**config, **changes}


@pytest.mark.parametrize("name", RENAMED)
def test_tensors_by_timms_names(name, tmp_path):
    theirs = interop.read(write(tmp_path / "hf", *reference(name)))
    ours = interop.read(write(tmp_path / "timm", config_of(name), tensors_of(name)))
    assert set(ours.names) == set(theirs.names) and ours.shapes == theirs.shapes
    for n in ours.names:
        np.testing.assert_array_equal(ours.load(n), theirs.load(n), n)
    assert ours.task == theirs.task and not ours.missing and not ours.unknown
    assert ours.model["mean"] == (0.4, 0.5, 0.6)
    assert ours.data == {"crop": 28 / 32, "keep_ratio": True}


@pytest.mark.parametrize("share, edge", [(0.9, 31), (0.86, 32), (1.0, 28)])
def test_timm_resizes_to_whole_pixels(tmp_path, share, edge):
    """28 / 0.9 is 31.1 and 28 / 0.86 is 32.6: both are rounded down."""
    config = config_of("vit", pretrained_cfg={**CFG, "crop_pct": share})
    read = interop.read(write(tmp_path / "timm", config, tensors_of("vit")))
    assert read.data["crop"] == 28 / edge


def test_an_import_is_exported_in_the_format_of_transformers(tmp_path):
    folder = write(tmp_path / "in", config_of("vit"), tensors_of("vit"))
    import_model.import_run(folder, str(tmp_path / "run"), lambda line: None)
    c = workdir_lib.read_config(str(tmp_path / "run"))
    assert c.model.norm_eps == 1e-6 and c.data.size == 28 and c.data.crop == 28 / 32
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=lambda line: None)
    given, again = interop.read(folder), interop.read(tmp_path / "out")
    assert again.architecture == "ViTForImageClassification" and again.task == given.task
    for n in given.names:
        np.testing.assert_array_equal(given.load(n), again.load(n), n)
    assert again.data == given.data and again.model["mean"] == given.model["mean"]


def test_registers_scales_and_a_class_without_a_position(tmp_path):
    """As in vit_small_patch14_reg4_dinov2: what such a model lacks is 0."""
    rng, tensors = np.random.default_rng(0), tensors_of("vit")
    tensors = {k: x for k, x in tensors.items() if not k.startswith("head")}
    tensors["patch_embed.proj.weight"] = rng.normal(size=(24, 3, 14, 14)).astype(np.float32)
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    tensors["reg_token"] = rng.normal(size=(1, 4, 24)).astype(np.float32)
    for i in range(2):
        for k in (1, 2):
            tensors[f"blocks.{i}.ls{k}.gamma"] = rng.normal(size=24).astype(np.float32)
    name = "vit_nano_patch14_reg4_dinov2"
    config = config_of("vit", architecture=name, num_classes=0, label_names=None)
    folder = write(tmp_path / "in", config, tensors)
    read = interop.read(folder)
    assert read.model["image_size"] == 56 and read.model["registers"] == 4
    np.testing.assert_array_equal(read.load("class_position"), np.zeros(24))
    np.testing.assert_array_equal(read.load("registers"), tensors["reg_token"][0])
    np.testing.assert_array_equal(read.load("position"), tensors["pos_embed"][0])
    scale = read.load("stack/layer_1/scale_2")
    np.testing.assert_array_equal(scale, tensors["blocks.1.ls2.gamma"])

    source = init_from.open_source(folder, str(tmp_path))
    fields = {k: v for k, v in source.model.items() if k != "name"}
    model = vit.Model(vit.Config(**fields), 2)
    fresh = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 56, 56, 3), np.uint8))
    fresh = unbox(fresh)["params"]
    assert np.any(fresh["class_position"])
    params = init_from.initialise(fresh, source, "", lambda line: None)
    np.testing.assert_array_equal(params["class_position"], np.zeros(24))


REFUSED = {
    "unknown": ("vit", dict(architecture="swin_tiny"), {}, "'swin_tiny' of timm is not one"),
    "size": ("vit", dict(architecture="vit_pico_patch7_28"), {}, "'vit_pico_patch7_28' of timm"),
    "avg pooling": ("vit", dict(global_pool="avg"), {}, "global_pool is 'avg'.*'token'"),
    "changed": ("vit", dict(model_args=dict(qk_norm=True)), {}, "model_args has qk_norm=True"),
    "norm of mean": ("vit", {}, {"fc_norm.weight": (24,)}, "has fc_norm.weight, unlike timm's"),
    "stem of another ResNet": ("resnet", {}, {"conv1.0.weight": (8,)}, "has conv1.0.weight"),
    "no positions": ("vit", {}, {"pos_embed": None}, "lacks pos_embed"),
    "another patch": (
        "vit",
        dict(architecture="vit_nano_patch14_28"),
        {},
        r"patch_embed.proj.weight has shape \(24, 3, 7, 7\)",
    ),
    "another width": (
        "vit",
        dict(architecture="vit_tiny_patch7_28"),
        {},
        "lacks blocks.10.attn.proj.bias",
    ),
    "no numbers of pixels": ("vit", dict(pretrained_cfg={}), {}, "pretrained_cfg needs a square"),
    "no crop": ("vit", dict(pretrained_cfg={**CFG, "crop_pct": "0"}), {}, "crop_pct is '0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    name, changes, tensors, message = REFUSED[case]
    given = tensors_of(name)
    for key, shape in tensors.items():
        if shape is None:
            del given[key]
        else:
            given[key] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=message):
        interop.read(write(tmp_path / "in", config_of(name, **changes), given))


def test_a_folder_of_timm_is_recognised(tmp_path):
    write(tmp_path / "in", config_of("vit"), tensors_of("vit"))
    assert interop.is_huggingface(tmp_path / "in")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model": {}}))
    assert not interop.is_huggingface(tmp_path / "in")
