"""Freezes reference numerics of ViT, DINOv2, BiT and ResNet for test_vision.py.

    python tests/parity/make_vision.py       # needs PyTorch and transformers; no jax, no bigjax

writes vit.npz, dinov2.npz, bit.npz, resnet.npz and positions.npz beside itself, from Hugging Face
transformers' classes for image classification. Made with torch 2.13.0 (CPU) and transformers
5.24.0.

Each of the first four holds, in float32:
    config           JSON of config.json
    params/NAME      the tensors, by the names that transformers gives them in files
    images           uint8 [B, H, W, 3]; the model reads images / 255, minus 0.5, over 0.5
    labels           int [B]
    logits           [B, 3], in evaluation
    loss []          mean over images, in nats, in training: without dropout, with the batch's
                     statistics
    grads/NAME       its gradients
    after/NAME       of resnet, the running statistics after that step
positions.npz has, for each A_B, positions `A_B/in` of a grid [A, A, D] and `A_B/out`, those that
torch's bicubic interpolation makes of them for a grid [B, B, D], as transformers' ViT does.
"""

import json
import math
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import load_file
import torch
import transformers

HERE = pathlib.Path(__file__).parent
B, N_LABELS = 5, 3
LABELS = dict(id2label={0: "cat", 1: "dog", 2: "owl"})
VIT = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=28,
    patch_size=7,
    attn_implementation="eager",
    **LABELS,
)
GRIDS = ((4, 7), (7, 4), (14, 24), (37, 16), (16, 37), (3, 3))


def draw(model, rng):
    """Fills a model with weights that expose mistakes: norms are not 1 and 0, attention is far from
    uniform, running statistics are not those of any batch."""
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if not p.is_floating_point():
                continue
            if name.endswith("running_var"):
                value = rng.uniform(0.5, 2.0, p.shape)
            elif p.ndim == 1 and name.endswith("weight") or "lambda1" in name:
                value = rng.uniform(0.5, 1.5, p.shape)
            elif p.ndim == 1 or "token" in name or "position" in name:
                value = rng.normal(0, 0.3, p.shape)
            else:  # [out, in, ...]
                value = rng.normal(0, 1.2 / math.sqrt(math.prod(p.shape[1:])), p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))


def in_files(model, values: dict) -> dict[str, np.ndarray]:
    """Values of the model's state, by the names of files."""
    state = {name: values.get(name, p) for name, p in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict={k: v.clone() for k, v in state.items()})
        return load_file(pathlib.Path(folder) / "model.safetensors")


def freeze(name: str, model, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    draw(model, rng)
    images = rng.integers(0, 256, (B, size, size, 3), np.uint8)
    labels = rng.integers(0, N_LABELS, B)
    pixels = ((images / 255 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    pixels, targets = torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels)
    with torch.no_grad():
        logits = model.eval()(pixels).logits
    params = in_files(model, {})
    loss = model.train()(pixels, labels=targets).loss
    loss.backward()
    zero = {n: torch.zeros_like(p) for n, p in model.state_dict().items()}
    grads = {n: zero[n] if p.grad is None else p.grad for n, p in model.named_parameters()}
    after = in_files(model, {})
    arrays = {f"params/{k}": x for k, x in params.items()}
    arrays |= {f"grads/{k}": x for k, x in in_files(model, {**zero, **grads}).items()}
    arrays |= {f"after/{k}": x for k, x in after.items() if "running" in k}
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    arrays |= dict(
        config=np.array(json.dumps(config)),
        images=images,
        labels=labels.astype(np.int32),
        logits=logits.numpy(),
        loss=loss.detach().numpy(),
    )
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    spread = logits.std().item()
    print(
        f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss:.4f}, logits std {spread:.2f}"
    )


def make_positions() -> None:
    rng, arrays = np.random.default_rng(9), {}
    for a, b in GRIDS:
        grid = rng.normal(0, 1, (a, a, 2)).astype(np.float32)
        as_image = torch.from_numpy(grid).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            as_image, size=(b, b), mode="bicubic", align_corners=False
        )
        arrays[f"{a}_{b}/in"] = grid
        arrays[f"{a}_{b}/out"] = resized[0].permute(1, 2, 0).contiguous().numpy()
    np.savez_compressed(HERE / "positions.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)  # fixes the order of sums, so that the files are reproducible
    t = transformers
    vit = t.ViTConfig(**VIT, intermediate_size=40, layer_norm_eps=1e-3)
    freeze("vit", t.ViTForImageClassification(vit), 28, 1)
    dino = t.Dinov2WithRegistersConfig(
        **VIT, use_swiglu_ffn=True, mlp_ratio=2, num_register_tokens=2, layer_norm_eps=1e-3
    )
    freeze("dinov2", t.Dinov2WithRegistersForImageClassification(dino), 28, 2)
    stages = dict(embedding_size=8, hidden_sizes=[32, 64], depths=[2, 1], **LABELS)
    freeze("bit", t.BitForImageClassification(t.BitConfig(**stages, num_groups=4)), 40, 3)
    freeze("resnet", t.ResNetForImageClassification(t.ResNetConfig(**stages)), 40, 4)
    make_positions()
