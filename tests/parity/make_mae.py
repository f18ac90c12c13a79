"""Freezes reference numerics of a masked autoencoder for test_mae.py.

    python tests/parity/make_mae.py       # needs PyTorch and transformers; no jax, no bigjax

writes mae.npz beside itself, from Hugging Face transformers' ViTMAEForPreTraining. Made with torch
2.13.0 (CPU) and transformers 5.24.0.

The file holds, in float32 and under the reference's own names:
    config           JSON: sizes, epsilon, mask ratio
    params/NAME      the weights; grads/NAME the gradients of `loss`
    images           [B, channels, H, W], normalised; noise [B, N], whose smallest are visible
    pixels           [B, N, patch * patch * channels]; mask [B, N], 1 = masked
    loss []          with pixels standardised in each patch
The fixed positions of the decoder are those of bigjax, big_vision and MoCo v3, written here again.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
B = 3
CONFIG = dict(
    image_size=12,
    patch_size=3,
    num_channels=3,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
    layer_norm_eps=1e-6,
    mask_ratio=0.75,
    norm_pix_loss=True,
)


def positions(side: int, d: int) -> np.ndarray:
    """[side * side, d]: sine and cosine of the column at d / 4 frequencies, then of the row."""
    omega = 10_000.0 ** -(np.arange(d // 4) / (d // 4 - 1))
    rows = []
    for y in range(side):
        for x in range(side):
            rows.append(np.concatenate([f(n * omega) for n in (x, y) for f in (np.sin, np.cos)]))
    return np.array(rows, np.float32)


def main():
    rng = np.random.default_rng(0)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**CONFIG)).eval()
    side = CONFIG["image_size"] // CONFIG["patch_size"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("decoder_pos_embed"):
                fixed = positions(side, CONFIG["decoder_hidden_size"])
                value = np.concatenate([np.zeros_like(fixed[:1]), fixed])[None]
            elif name.endswith("bias"):
                value = rng.normal(0, 0.2, p.shape)
            elif "norm" in name:
                value = rng.uniform(0.5, 1.5, p.shape)
            elif p.ndim == 2:
                value = rng.normal(0, 1.2 / p.shape[1] ** 0.5, p.shape)
            else:
                value = rng.normal(0, 0.3, p.shape)
            p.copy_(torch.from_numpy(np.asarray(value, np.float32)))
    images = rng.uniform(-1, 1, (B, 3, CONFIG["image_size"], CONFIG["image_size"]))
    noise = rng.uniform(size=(B, side**2))
    images, noise = (torch.from_numpy(x.astype(np.float32)) for x in (images, noise))
    out = model(images, noise=noise)
    out.loss.backward()
    arrays = {
        "config": np.array(json.dumps(CONFIG)),
        "images": images.numpy(),
        "noise": noise.numpy(),
        "pixels": out.logits.detach().numpy(),
        "mask": out.mask.numpy(),
        "loss": out.loss.detach().numpy(),
    }
    for name, p in model.named_parameters():
        arrays[f"params/{name}"] = p.detach().numpy()
        if p.grad is not None:
            arrays[f"grads/{name}"] = p.grad.numpy()
    np.savez_compressed(HERE / "mae.npz", **arrays)


if __name__ == "__main__":
    main()
