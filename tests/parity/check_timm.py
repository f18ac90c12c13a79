"""Checks the import of timm's models against timm itself. Run by hand:

    python tests/parity/check_timm.py [ARCHITECTURE ...]     # needs PyTorch, timm, bigjax

Models with random weights, saved by timm as for a hub, are imported into a work folder. It prints
the largest difference of outputs for pictures of the shown size, relative to the largest, and that
of the numbers that timm's evaluation transform gives for pictures, on average. Where transformers
has such a class, the run is exported, and transformers' outputs are compared too.
Last run with timm 1.0.31, torch 2.11.0, transformers 5.17.0: outputs differ by 7e-6 at most.
"""

import pathlib

import numpy as np
import timm
import timm.models
import torch
import transformers

from bigjax import interop
from bigjax.errors import UserError
from bigjax.train import export_model, import_model
from tests.parity.check_transformers import BAR, difference, main
from tests.parity.check_vision import normalised, ours, pictures, shown

CASES = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "resnet18",
    "resnet50",
    "resnetv2_50x1_bit",
)


def check(name: str, root: pathlib.Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model(name)
    with torch.no_grad():
        for key, p in model.state_dict().items():  # norms, biases and statistics too
            if p.is_floating_point():
                one = key.endswith(("gamma", "running_var"))
                wide = 0.3 if p.ndim == 1 else 0.02
                p.copy_((1.0 if one else p) + wide * (2 * torch.rand(p.shape) - 1))
    model.eval()
    timm.models.save_for_hf(model, root / "in", safe_serialization=True)
    import_model.import_run(str(root / "in"), str(root / "run"), lambda line: None)
    size = model.pretrained_cfg["input_size"][-1]
    images = shown(root / "run", pictures(size))
    pixels = normalised(root / "run", images)[:2]
    with torch.no_grad():
        x = torch.from_numpy(pixels)
        expected = [model(x).numpy()] if model.num_classes else None
        if expected is None:
            tokens = model.forward_features(x).numpy()
            expected = [tokens[:, 0], tokens[:, model.num_prefix_tokens :]]
    imported = interop.read(root / "in")
    error = difference(ours(root / "run", imported, images[:2]), expected)
    assert error <= BAR, error
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    apart = [
        np.abs(transform(a).numpy() - b).mean()
        for a, b in zip(pictures(size), normalised(root / "run", images))
    ]
    try:
        export_model.export_run(str(root / "run"), str(root / "out"), log=lambda line: None)
        auto = transformers.AutoModelForImageClassification
        again = auto.from_pretrained(root / "out", attn_implementation="eager").eval()
        with torch.no_grad():
            exported = f"{difference([again(x).logits.numpy()], expected):.1e}"
        assert float(exported) <= BAR, exported
    except UserError as e:
        exported = str(e)[:60]
    text = ", ".join(f"{x:.1e}" for x in apart)
    print(f"{name:<32} {error:.1e}; exported: {exported}; pictures: {text}")


if __name__ == "__main__":
    main(CASES, check)
