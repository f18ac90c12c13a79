"""Freezes reference numerics of AlexNet and VGG for test_convnet.py.

    python tests/parity/make_convnet.py       # needs PyTorch; no jax, no bigjax

writes convnet.npz beside itself: two small networks of torch.nn with the first layers of
torchvision's AlexNet (11x11 with stride 4, windows of 3) and of its VGG with batch normalisation.
Made with torch 2.13.0 (CPU).

For each of 'alexnet' and 'vgg', in float32:
    NAME/images      [B, 3, H, W], normalised; NAME/labels int [B]
    NAME/params/I.weight, .bias      of layer I of the Sequential; NAME/grads/...: of `loss`
    NAME/logits [B, 3], NAME/loss []: in training, without dropout
    NAME/stats/I.running_mean, .running_var      after that step
"""

import pathlib

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
B = 4


class Flat(nn.Module):
    """Height, width, channels in one axis: the order of bigjax, whose arrays are [B, H, W, C]."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def networks():
    alexnet = nn.Sequential(
        nn.Conv2d(3, 6, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        Flat(),
        nn.Linear(8 * 3 * 3, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )
    vgg = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        Flat(),
        nn.Linear(8 * 2 * 2, 10),
        nn.ReLU(),
        nn.Linear(10, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )
    return {"alexnet": (alexnet, 63), "vgg": (vgg, 9)}


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (model, side) in networks().items():
        with torch.no_grad():
            for p in model.parameters():
                scale = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.3
                offset = 0.0 if p.ndim > 1 else 0.5
                value = rng.normal(offset, scale, p.shape).astype(np.float32)
                p.copy_(torch.from_numpy(value))
        images = torch.from_numpy(rng.uniform(-1, 1, (B, 3, side, side)).astype(np.float32))
        labels = torch.from_numpy(rng.integers(0, 3, B))
        logits = model.train()(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        arrays |= {
            f"{name}/images": images.numpy(),
            f"{name}/labels": labels.numpy(),
            f"{name}/logits": logits.detach().numpy(),
            f"{name}/loss": loss.detach().numpy(),
            **{f"{name}/params/{n}": p.detach().numpy() for n, p in model.named_parameters()},
            **{f"{name}/grads/{n}": p.grad.numpy() for n, p in model.named_parameters()},
            **{f"{name}/stats/{n}": b.numpy() for n, b in model.named_buffers() if "run" in n},
        }
    np.savez_compressed(HERE / "convnet.npz", **arrays)


if __name__ == "__main__":
    main()
