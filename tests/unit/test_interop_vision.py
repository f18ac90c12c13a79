"""Image models of Hugging Face: imports and exports, labels, processors, and what is refused.

Tensors are those of the frozen references of tests/parity, whose outputs are compared there.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import interop
from bigjax.errors import UserError
from bigjax.interop import images
from bigjax.interop.origin import ORIGIN
from bigjax.models import vit
from bigjax.train import export_model, import_model
from bigjax.train import workdir as workdir_lib

PARITY = pathlib.Path(__file__).parents[1] / "parity"
SQUARE = dict(
    image_processor_type="ViTImageProcessor",
    size=dict(height=28, width=28),
    image_mean=[0.4, 0.5, 0.6],
    image_std=[0.2, 0.3, 0.4],
    resample=2,
)
CUT = dict(
    SQUARE,
    image_processor_type="BitImageProcessor",
    size=dict(shortest_edge=50),
    do_center_crop=True,
    crop_size=dict(height=40, width=40),
)


def reference(name: str) -> tuple[dict, dict]:
    """(config.json, tensors) of a frozen model."""
    with np.load(PARITY / f"{name}.npz") as f:
        tensors = {k.removeprefix("params/"): f[k] for k in f if k.startswith("params/")}
        return json.loads(str(f["config"])), tensors


def write(folder, config: dict, tensors: dict, processor: dict | None = None) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if processor is not None:
        (folder / images.FILE).write_text(json.dumps(processor))
    return str(folder)


def round_trip(root, log=lambda line: None) -> None:
    """root/in is imported into root/run and exported into root/out, byte for byte."""
    import_model.import_run(str(root / "in"), str(root / "run"), log)
    export_model.export_run(str(root / "run"), str(root / "out"), log=log)
    names = sorted(p.name for p in (root / "in").iterdir())
    assert names == sorted(p.name for p in (root / "out").iterdir())
    for name in names:
        assert (root / "in" / name).read_bytes() == (root / "out" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["vit", "dinov2", "bit", "resnet"])
def test_an_import_and_export_gives_the_same_files(name, tmp_path):
    config, tensors = reference(name)
    processor = SQUARE if name in ("vit", "dinov2") else CUT
    write(tmp_path / "in", config, tensors, processor)
    lines: list[str] = []
    round_trip(tmp_path, lines.append)
    (wrote,) = [x for x in lines if x.startswith(f"Wrote {tmp_path / 'run'}: ")]
    kept = f"tokenizer/huggingface/{images.FILE}"  # there is no tokenizer
    assert wrote.endswith(f" parameters as step 0, config.json, {kept}, {ORIGIN}")
    assert (tmp_path / "run" / kept).exists()
    c = workdir_lib.read_config(str(tmp_path / "run"))
    assert c.task.name == "image_classify" and c.task.labels == ["cat", "dog", "owl"]
    size, crop, keep_ratio = (28, 1.0, False) if processor is SQUARE else (40, 0.8, True)
    assert c.data.name == "images" and c.data.size == c.model.image_size == size
    assert (c.data.crop, c.data.keep_ratio, c.data.channels) == (crop, keep_ratio, 3)
    assert c.model.mean == [0.4, 0.5, 0.6] and c.model.std == [0.2, 0.3, 0.4]
    assert c.model.get("norm_eps") == (1e-3 if "patch" in c.model else 1e-5)

    # As a run of our own: new files with the same tensors, and zeros for what the run lacks.
    (tmp_path / "run" / ORIGIN).unlink()
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "new"), log=lambda line: None)
    again = load_file(tmp_path / "new" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for key, x in again.items():
        unused = key.endswith(("mask_token", "num_batches_tracked"))
        np.testing.assert_array_equal(x, tensors[key] * 0 if unused else tensors[key], key)
        assert x.dtype == tensors[key].dtype
    written, read_again = (interop.read(tmp_path / folder) for folder in ("in", "new"))
    assert (written.model, written.task, written.data) == (
        read_again.model,
        read_again.task,
        read_again.data,
    )


RENAMED = {  # by transformers 5, in its modules; files have the old names
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_the_names_of_transformers_5_are_read(name, tmp_path):
    config, tensors = reference(name)
    renamed = {}
    for key, x in tensors.items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)
        if name == "vit":
            key = key.replace("vit.encoder.layer.", "vit.layers.")
            key = key.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        if "weights_in" in key:
            for part, half in zip(("gate", "up"), np.split(x, 2)):
                renamed[key.replace("weights_in", f"{part}_proj")] = half
        else:
            renamed[key.replace("weights_out", "down_proj")] = x
    assert len(renamed.keys() & tensors.keys()) < len(tensors) - 20
    old = interop.read(write(tmp_path / "old", config, tensors))
    new = interop.read(write(tmp_path / "in", config, renamed))
    assert set(old.names) == set(new.names) and not new.unknown and not new.missing
    for n in old.names:
        np.testing.assert_array_equal(old.load(n), new.load(n), n)
    round_trip(tmp_path)
    if name == "dinov2":
        both = {**renamed, **tensors}
        with pytest.raises(UserError, match="hold the same weights in an old and a new form|under"):
            interop.read(write(tmp_path / "both", config, both))


def test_a_body_keeps_its_pooler_and_gets_a_head(tmp_path):
    """A trained run of it is a classifier; its export at step 0 is the original."""
    config, tensors = reference("vit")
    body = {k.removeprefix("vit."): x for k, x in tensors.items() if k.startswith("vit.")}
    rng = np.random.default_rng(0)
    for key, shape in (("weight", (24, 24)), ("bias", (24,))):
        body[f"pooler.dense.{key}"] = rng.normal(size=shape).astype(np.float32)
    del config["id2label"]
    write(tmp_path / "in", {**config, "architectures": ["ViTModel"]}, body)
    lines: list[str] = []
    round_trip(tmp_path, lines.append)
    text = "\n".join(lines)
    assert "kept for export: pre_logits/kernel, pre_logits/bias" in text
    assert f" parameters as step 0, config.json, {ORIGIN}" in text  # it has no other files
    assert "no preprocessor_config.json: model.mean and model.std are those usual for vit" in text
    run = workdir_lib.read_config(str(tmp_path / "run"))
    assert run.model.pre_logits == 0 and run.task.labels == ["LABEL_0", "LABEL_1"]

    origin = json.loads((tmp_path / "run" / ORIGIN).read_text())
    origin["layout"] = None  # as after training
    (tmp_path / "run" / ORIGIN).write_text(json.dumps(origin))
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "trained"), log=lines.append)
    trained = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert trained["architectures"] == ["ViTForImageClassification"]
    assert "classifier.weight" in load_file(tmp_path / "trained" / "model.safetensors")
    assert images.read((tmp_path / "trained" / images.FILE).read_bytes()).view == images.View(28)


def test_several_labels_an_image(tmp_path):
    config, tensors = reference("vit")
    config["problem_type"] = "multi_label_classification"
    folder = write(tmp_path / "in", config, tensors)
    imported = interop.read(folder)
    assert imported.task["several"] is True
    params = {n: imported.load(n) for n in imported.names}
    for several, kind in ((True, "multi"), (False, "single")):
        interop.write(
            tmp_path / kind,
            family=imported.family,
            architecture=imported.architecture,
            model=imported.model,
            params=params,
            task={**imported.task, "several": several},
            config=imported.config,
        )
        problem = json.loads((tmp_path / kind / "config.json").read_text())["problem_type"]
        assert problem == f"{kind}_label_classification"


def test_labels_that_occur_twice(tmp_path):
    """As 'crane' in ImageNet: distinguished in the run, unchanged in the files."""
    config, tensors = reference("vit")
    config["id2label"] = {"0": "crane", "1": "dog", "2": "crane"}
    write(tmp_path / "in", config, tensors)
    round_trip(tmp_path)
    task = workdir_lib.read_config(str(tmp_path / "run")).task
    assert task.labels == ["crane", "dog", "crane (2)"]


PROCESSORS = {
    # (preprocessor_config.json, size, crop, keep_ratio)
    "vit": ({"image_processor_type": "ViTImageProcessorFast"}, 224, 1.0, False),
    "vit, 2021": ({"feature_extractor_type": "ViTFeatureExtractor", "size": 384}, 384, 1.0, False),
    "bit": ({"image_processor_type": "BitImageProcessor", "size": 256}, 224, 0.875, True),
    "dinov2": (
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
        },
        224,
        0.875,
        True,
    ),
    "convnext": (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875},
        224,
        0.875,
        True,
    ),
    "convnext, rounded down": (
        {"image_processor_type": "ConvNextImageProcessor", "size": 160, "crop_pct": 0.9},
        160,
        160 / 177,
        True,
    ),
    "convnext, large": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        384,
        1.0,
        False,
    ),
    "cut of a square": ({**SQUARE, "do_center_crop": True, "crop_size": 14}, 14, 0.5, False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name):
    config, *view = PROCESSORS[name]
    assert images.read(json.dumps(config).encode()).view == images.View(*view)


@pytest.mark.parametrize("width, inner", [(20, 56), (24, 64), (1536, 4096)])
def test_the_width_of_a_swiglu_is_a_multiple_of_8(width, inner):
    """Two thirds of mlp_ratio * hidden_size, rounded up, as in transformers' Dinov2SwiGLUFFN."""
    field = next(field for field in vit.hugging_face.DINOV2.fields if field.ours == "d_ff")
    config = dict(hidden_size=width, mlp_ratio=4, use_swiglu_ffn=True)
    assert field.get(config) == inner
    field.put(config, inner)
    assert config["mlp_ratio"] == 4


def test_numbers_of_a_processor():
    """(x * factor - mean) / std, whatever is left out, as a mean and std of values of 0 to 1."""
    read = lambda **config: images.read(json.dumps({**SQUARE, **config}).encode())
    x = np.array([0.0, 17.0, 255.0])
    for config in (
        dict(rescale_factor=1 / 127.5),
        dict(do_rescale=False),
        dict(do_normalize=False),
        dict(do_normalize=False, do_rescale=False),
    ):
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
        normalise = config.get("do_normalize", True)
        mean, std = (0.4, 0.2) if normalise else (0, 1)
        seen = read(**config)
        got = (x / 255 - seen.mean[0]) / seen.std[0]
        np.testing.assert_allclose(got, (x * factor - mean) / std, rtol=1e-12, err_msg=str(config))
    assert read().mean == (0.4, 0.5, 0.6)  # not rounded
    assert "resample=3" in read(resample=3).notes[0]
    for config in (dict(do_resize=False), dict(size={"longest_edge": 99})):
        seen = read(**config)
        assert seen.view is None and "data.size" in seen.notes[0]


@pytest.mark.parametrize("view", [(40, 0.8, True), (40, 1.0, True), (28, 1.0, False), (28, 0.5, 0)])
def test_a_processor_that_is_written_is_read_alike(view):
    size, crop, keep_ratio = view
    model = dict(image_size=size, channels=1, mean=(0.1,), std=(0.2,))
    content, notes = images.written(model, dict(crop=crop, keep_ratio=keep_ratio), None)
    again = images.read(content)
    assert again == images.Preprocessing(images.View(*view), (0.1,), (0.2,), []) and not notes
    assert images.written(model, dict(crop=crop, keep_ratio=keep_ratio), content) == (content, [])
    other, _ = images.written({**model, "mean": (0.3,)}, dict(crop=crop), content)
    assert other != content and images.read(other).mean == (0.3,)
    _, notes = images.written(model, dict(crop=0.77), None)
    assert "data.crop=0.77" in notes[0]


REFUSED = {
    # (model, changes of config.json, a part of the message)
    "rectangles": ("vit", dict(image_size=[28, 56]), "image_size is .28, 56.*squares"),
    "no bias": ("vit", dict(qkv_bias=False), "qkv_bias is False"),
    "heads": ("vit", dict(num_attention_heads=5), "hidden_size=24 does not divide into"),
    "head_dim": ("vit", dict(head_dim=16), "head_dim is 16"),
    "activation": ("vit", dict(hidden_act="quick_gelu"), "hidden_act is 'quick_gelu'"),
    "regression": ("vit", dict(problem_type="regression"), "problem_type is 'regression'"),
    "another patch": ("vit", dict(patch_size=14), r"tensor vit.embeddings.* has shape"),
    "masked": (
        "vit",
        dict(architectures=["ViTForMaskedImageModeling"]),
        "supported are .*ViTModel",
    ),
    "ratio": ("dinov2", dict(mlp_ratio=2.5), "mlp_ratio is 2.5"),
    "scale": ("dinov2", dict(layerscale_value=0.0), "layerscale_value is 0.0"),
    "post-activation": ("bit", dict(layer_type="bottleneck"), "layer_type is 'bottleneck'"),
    "padding": ("bit", dict(global_padding="SAME"), "global_padding is 'SAME'"),
    "wide": ("bit", dict(width_factor=3), "width_factor is 3"),
    "dilated": ("bit", dict(output_stride=4), "output_stride is 4.*only supports 8 or more"),
    "sizes": ("resnet", dict(hidden_sizes=[32, 96]), r"hidden_sizes is \[32, 96\].*\[32, 64\]"),
    "depths": ("resnet", dict(depths=[0]), r"depths is \[0\]"),
    "layer": ("resnet", dict(layer_type="wide"), "layer_type is 'wide'.*bottleneck, basic"),
    "stride": ("resnet", dict(downsample_in_bottleneck=True), "downsample_in_bottleneck is True"),
    "first": ("resnet", dict(downsample_in_first_stage=True), "downsample_in_first_stage is True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_models(case, tmp_path):
    name, changes, message = REFUSED[case]
    config, tensors = reference(name)
    with pytest.raises(UserError, match=message):
        interop.read(write(tmp_path / "in", {**config, **changes}, tensors))


@pytest.mark.parametrize(
    "processor, message",
    [
        ("[1]", "holds a list"),
        ("{", "is not JSON"),
        ({**SQUARE, "image_std": [0.1, 0.0, 0.1]}, "not a number"),
        ({**SQUARE, "size": "large"}, "not a number"),
        ({**SQUARE, "image_mean": [0.5], "image_std": [0.5, 0.5]}, "and image_std has 2"),
        ({**SQUARE, "image_mean": [1, 1], "image_std": [1, 1]}, "num_channels .* is 3"),
    ],
)
def test_refused_processors(processor, message, tmp_path):
    config, tensors = reference("vit")
    folder = write(tmp_path / "in", config, tensors)
    text = processor if isinstance(processor, str) else json.dumps(processor)
    (tmp_path / "in" / images.FILE).write_text(text)
    with pytest.raises(UserError, match=f"{images.FILE}.*{message}"):
        interop.read(folder)


def test_models_that_transformers_has_no_class_for():
    def fields(**options):
        c = vit.Config(image_size=28, patch=7, d_model=24, n_layers=1, n_heads=3, **options)
        return {"name": "vit", **{k: getattr(c, k) for k in c.__dataclass_fields__}}

    family = lambda **options: interop.family_of(fields(**options)).name
    dino = dict(pooling="class_mean", layer_scale=1e-5)
    assert family() == "vit" and family(**dino) == "dinov2"
    assert family(**dino, registers=4, activation="swiglu", d_ff=64) == "dinov2_with_registers"
    for options, message in (
        (dict(pooling="map"), "for vit, model.pooling='map' .must be 'class'"),
        (dict(pre_logits=9), "model.pre_logits=9 .must be 0"),
        (dict(position="sincos2d"), "model.position='sincos2d'"),
        (dict(activation="swiglu"), "model.activation='swiglu'"),
        (dict(**dino, d_ff=50), "for dinov2, model.d_ff=50 .must be 24 or 48"),
        (dict(pooling="class_mean"), "model.layer_scale=0.0 .must be 1.0"),
    ):
        with pytest.raises(UserError, match=f"no class for this model: .*{message}"):
            family(**options)


def test_an_import_of_another_image_size_is_refused(tmp_path):
    folder = write(tmp_path / "in", *reference("vit"))
    flags = ["--config.model.image_size=42", "--config.data.size=42"]
    message = r"position has the shape \(16, 24\) .*\(36, 24\) in task.*config.init_from"
    with pytest.raises(UserError, match=message):
        import_model.import_run(folder, str(tmp_path / "run"), lambda line: None, flags)
    assert not (tmp_path / "run").exists()
