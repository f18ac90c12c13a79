"""Freezes reference numerics of SeqGAN's networks in PyTorch for test_seqgan.py.

    python tests/parity/make_seqgan.py        # needs PyTorch; no jax, no bigjax

writes seqgan.npz beside itself. Made with torch 2.13.0 (CPU), in float32, from the paper
(https://arxiv.org/abs/1609.05473, sections 3.2 and A): a discriminator of convolutions over the
words, the rectifier, the maximum over time, a highway layer and a linear one; a generator of an
LSTM. The weights are large enough for every gate to be far from linear.

Arrays NETWORK/NAME:
    params/PATH, grads/PATH   in bigjax's layout with its names, and the gradients of the loss
    tokens, targets int       targets are [B] for the discriminator, [B, T] for the generator
    weights, logits, loss     the loss is sum(weights * cross-entropy)
"""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
B, T, V = 5, 7, 11
WIDTHS, FILTERS = (1, 2, 4, 7), (3, 5, 2, 4)
D_DISCRIMINATOR, D_GENERATOR = 6, 4


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        n = sum(FILTERS)
        self.embed = nn.Embedding(V, D_DISCRIMINATOR)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(D_DISCRIMINATOR, count, width) for width, count in zip(WIDTHS, FILTERS)
        )
        self.gate, self.highway, self.head = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, 2)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        y = torch.cat([F.relu(conv(x)).max(dim=2).values for conv in self.convolutions], dim=1)
        t = torch.sigmoid(self.gate(y) - 2)
        return self.head(t * F.relu(self.highway(y)) + (1 - t) * y)

    def converted(self, get):
        """{our name: array} from get(parameter): the value or the gradient."""
        out = {"embed/embedding": get(self.embed.weight)}
        for width, conv in zip(WIDTHS, self.convolutions):
            kernel = get(conv.weight)  # [filters, D, width]
            out[f"conv_{width}/kernel"] = kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
            out[f"bias_{width}"] = get(conv.bias)
        for name in ("gate", "highway", "head"):
            layer = getattr(self, name)
            out[f"{name}/kernel"], out[f"{name}/bias"] = get(layer.weight).T, get(layer.bias)
        return out


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D_GENERATOR), nn.Linear(D_GENERATOR, V)
        self.lstm = nn.LSTM(D_GENERATOR, D_GENERATOR, batch_first=True)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0])

    def converted(self, get):
        def gates(x):  # torch's input, forget, candidate, output in our order
            i, f, g, o = np.split(x, 4)
            return np.concatenate([i, f, o, g]).T

        layer = "recurrent/forward_0"
        return {
            "embed/embedding": get(self.embed.weight),
            f"{layer}/kernel": gates(get(self.lstm.weight_ih_l0)),
            f"{layer}/recurrent_kernel": gates(get(self.lstm.weight_hh_l0)),
            f"{layer}/bias": gates(get(self.lstm.bias_ih_l0)),  # the other one is 0
            "head/kernel": get(self.head.weight).T,
            "head/bias": get(self.head.bias),
        }


def freeze(network, targets_shape, classes, rng):
    """The arrays of one network."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(torch.from_numpy(rng.normal(0, 0.7, p.shape).astype(np.float32)))
            if name == "lstm.bias_hh_l0":
                p.zero_()
    tokens = torch.from_numpy(rng.integers(0, V, (B, T)))
    targets = torch.from_numpy(rng.integers(0, classes, targets_shape))
    weights = torch.from_numpy(rng.uniform(0, 2, targets_shape).astype(np.float32))
    logits = network(tokens)
    nll = F.cross_entropy(logits.reshape(-1, classes), targets.ravel(), reduction="none")
    loss = (nll * weights.ravel()).sum()
    loss.backward()
    out = dict(tokens=tokens, targets=targets, weights=weights, logits=logits, loss=loss)
    params = network.converted(lambda p: p.detach().numpy())
    grads = network.converted(lambda p: p.grad.numpy())
    return {
        **{name: x.detach().numpy() for name, x in out.items()},
        **{f"params/{k}": x for k, x in params.items()},
        **{f"grads/{k}": x for k, x in grads.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # fixes the order of sums, so that the file is reproducible
    rng, arrays = np.random.default_rng(7), {}
    for name, network, shape, classes in (
        ("discriminator", Discriminator(), (B,), 2),
        ("generator", Generator(), (B, T), V),
    ):
        for key, x in freeze(network, shape, classes, rng).items():
            arrays[f"{name}/{key}"] = x
    path = HERE / "seqgan.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {len(arrays)} arrays")
