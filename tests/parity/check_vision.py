"""Checks the import and export of image models against transformers itself. Run by hand:

    python tests/parity/check_vision.py [NAME ...]     # needs PyTorch, transformers, bigjax

Tiny random models of every supported architecture, saved by transformers with their image
processor, are imported into a work folder and exported again. For each it checks that
    outputs  bigjax's outputs equal those of transformers
    names    the tensors are also read by the names that they have in transformers' modules
    back     the export has the same files, byte for byte (config.json and the processor's too)
    new      without the record of its origin, the export opens in transformers, with the same
             outputs of the model; and its processor gives for square pictures the same numbers,
             but those at the border of a picture that is cut: bigjax cuts before it resizes
It prints the largest difference of outputs, and the mean difference of the numbers that the
processor gives for pictures: as large as is shown, a larger square, and two of other shapes, where
transformers cuts whole pixels of the resized picture.
    shards   an export in shards opens in transformers, with the same outputs
Last run with torch 2.13.0, transformers 5.24.0: outputs differ by 3.5e-6 at most, bfloat16 and
float16 weights computed in float32 on both sides; all files are equal; pictures of other shapes by
0.006 on average, of a standard deviation of about 1.
"""

import json
import pathlib

import numpy as np
from PIL import Image
from safetensors.torch import save_file
import torch
import transformers

from bigjax import interop, modules
from bigjax.data.images.batches import evaluation_view, image_of
from bigjax.interop.origin import ORIGIN
from bigjax.train import export_model, import_model
from bigjax.train import workdir as workdir_lib
from tests.parity.check_transformers import BAR, difference, main, same_files

SHARD = 20_000  # bytes
VIT = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
    initializer_range=0.2,
)
DINO = {**VIT, "layerscale_value": 0.5}
NAMES = dict(id2label={0: "cat", 1: "dog", 2: "owl"})
BASIC = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 1], layer_type="basic")
BOTTLENECK = dict(embedding_size=8, hidden_sizes=[32, 64, 128], depths=[1, 2, 1])
BIT = dict(embedding_size=16, hidden_sizes=[64, 128], depths=[2, 1], num_groups=8)
SQUARE = transformers.ViTImageProcessorPil(size=dict(height=56, width=56))
CUT = transformers.BitImageProcessorPil(
    size=dict(shortest_edge=64),
    crop_size=dict(height=56, width=56),
    resample=2,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)
PERCENT = transformers.ConvNextImageProcessorPil(size=dict(shortest_edge=56), crop_pct=0.875)
# name: (class, config, dtype, processor)
CASES = {
    "vit": (
        "ViTForImageClassification",
        {**VIT, "intermediate_size": 48, **NAMES},
        "float32",
        SQUARE,
    ),
    "vit-several": (
        "ViTForImageClassification",
        {**VIT, **NAMES, "problem_type": "multi_label_classification", "hidden_act": "gelu_new"},
        "float32",
        CUT,
    ),
    "vit-body": ("ViTModel", VIT, "bfloat16", None),
    "dinov2": ("Dinov2ForImageClassification", {**DINO, **NAMES}, "float32", CUT),
    "dinov2-swiglu": (
        "Dinov2ForImageClassification",
        {**DINO, **NAMES, "use_swiglu_ffn": True},
        "float16",
        CUT,
    ),
    "dinov2-body": ("Dinov2Model", {**DINO, "use_swiglu_ffn": True}, "float32", CUT),
    "registers": (
        "Dinov2WithRegistersForImageClassification",
        {**DINO, **NAMES, "num_register_tokens": 3},
        "float32",
        CUT,
    ),
    "registers-body": ("Dinov2WithRegistersModel", DINO, "float32", CUT),
    "resnet": ("ResNetForImageClassification", {**BOTTLENECK, **NAMES}, "float32", PERCENT),
    "resnet-basic": ("ResNetForImageClassification", {**BASIC, **NAMES}, "bfloat16", PERCENT),
    "resnet-body": ("ResNetModel", BASIC, "float32", PERCENT),
    "bit": ("BitForImageClassification", {**BIT, **NAMES}, "float32", CUT),
    "bit-body": ("BitModel", BIT, "float32", CUT),
}


def pictures(size: int) -> list[Image.Image]:
    """One of the size that is shown, one larger square, and two of other shapes."""
    rng = np.random.default_rng(1)
    shapes = (size, size), (3 * size, 3 * size), (100, 141), (203, 90)
    coarse = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)) for _ in shapes]
    return [x.resize(s, Image.Resampling.BICUBIC) for x, s in zip(coarse, shapes)]


def theirs(folder: pathlib.Path, name: str, pixels: np.ndarray) -> list[np.ndarray]:
    """The outputs of the model in a folder for normalised pixels, in float32."""
    model, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["unexpected_keys"], info
    assert all("pooler" in key for key in info["missing_keys"]), info
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(pixels))
    if "logits" in out:
        return [out.logits.numpy()]
    last = out.last_hidden_state.numpy()
    if last.ndim == 4:
        return [out.pooler_output.numpy()[..., 0, 0], last.transpose(0, 2, 3, 1)]
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    return [last[:, 0], last[:, first:]]


def ours(workdir: pathlib.Path, imported: interop.Imported, images: np.ndarray) -> list[np.ndarray]:
    """The same outputs of bigjax's model for uint8 images."""
    tree: dict = {"params": {}}
    for name in imported.names:
        *parents, last = (name if name.startswith("batch_stats/") else f"params/{name}").split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = imported.load(name).astype(np.float32)
    config = workdir_lib.read_config(str(workdir))
    with config.unlocked():
        config.model.update(
            param_dtype="float32", **({"scan": False} if "scan" in config.model else {})
        )
    head = "head" in tree["params"]
    family, c = modules.of(config, "model"), modules.options(config, "model")
    out = family.Model(c, len(config.task.labels) if head else 0).apply(tree, images)
    if head:
        return [out.logits]
    d = imported.model.get("d_model", out.features.shape[-1])
    return [out.features[:, :d], out.grid]


def shown(workdir: pathlib.Path, images: list[Image.Image]) -> np.ndarray:
    """What bigjax's evaluation shows of the pictures, uint8."""
    config = workdir_lib.read_config(str(workdir))
    data = modules.options(config, "data")
    view = lambda w, h: evaluation_view(w, h, data)
    return np.stack([np.asarray(image_of(np.asarray(x), "", data, view)) for x in images])


def normalised(workdir: pathlib.Path, images: np.ndarray) -> np.ndarray:
    model = workdir_lib.read_config(str(workdir)).model
    return ((images / 255 - model.mean) / model.std).astype(np.float32).transpose(0, 3, 1, 2)


def check(case: str, root: pathlib.Path) -> None:
    name, config, dtype, processor = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(3)
    model = cls(cls.config_class(**config)).to(getattr(torch, dtype))
    with torch.no_grad():
        for p in [*model.parameters(), *model.buffers()]:  # norms and biases too
            if p.is_floating_point():
                p.add_(0.1 * torch.rand(p.shape).to(p.dtype))
    source, quiet = root / "source", lambda text: None
    model.save_pretrained(source)
    if processor:
        processor.save_pretrained(source)
    import_model.import_run(source, root / "run", quiet)
    images = shown(root / "run", pictures(56))
    pixels = normalised(root / "run", images)
    expected = theirs(source, name, pixels)
    error = difference(ours(root / "run", interop.read(source), images), expected)
    assert error <= BAR, error

    new = root / "modules"
    new.mkdir()
    (new / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(model.state_dict(), new / "model.safetensors", {"format": "pt"})
    a, b = interop.read(source), interop.read(new)
    assert set(a.names) == set(b.names) and not b.unknown and not b.missing, (b.unknown, b.missing)
    assert all(np.array_equal(a.load(n), b.load(n)) for n in a.names)
    import_model.import_run(new, root / "run-modules", quiet)
    export_model.export_run(root / "run-modules", root / "back-modules", log=quiet)
    same_files(new, root / "back-modules")

    export_model.export_run(root / "run", root / "back", log=quiet)
    same_files(source, root / "back")
    export_model.export_run(root / "run", root / "shards", log=quiet, max_shard_bytes=SHARD)
    assert len([*(root / "shards").glob("*.safetensors")]) > 2
    assert difference(theirs(root / "shards", name, pixels), expected) == 0

    (root / "run" / ORIGIN).unlink()
    export_model.export_run(root / "run", root / "new", log=quiet, dtype=dtype)
    saved = json.loads((root / "new" / "config.json").read_text())["architectures"][0]
    if saved == name:
        assert difference(theirs(root / "new", name, pixels), expected) == 0
    seen = transformers.AutoImageProcessor.from_pretrained(root / "new")
    apart = [np.abs(np.asarray(seen(x).pixel_values[0]) - p) for x, p in zip(pictures(56), pixels)]
    assert all(x[:, 1:-1, 1:-1].max() < 1e-6 for x in apart[:2]), apart
    text = ", ".join(f"{x.mean():.1e}" for x in apart)
    print(f"{case:<16} {name:<42} {dtype:<9} {error:.1e} as new: {saved}; pictures: {text}")


if __name__ == "__main__":
    main(CASES, check)
