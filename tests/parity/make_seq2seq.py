"""Freezes reference numerics of recurrent encoder-decoders with attention for test_seq2seq.py.

    python tests/parity/make_seq2seq.py       # needs PyTorch; no jax, no bigjax

writes seq2seq.npz beside itself. The model is written out below from the papers, token by token and
row by row, without padding: https://arxiv.org/abs/1409.0473 (encoder, additive score),
https://arxiv.org/abs/1508.04025 (attention after the recurrence, dot score),
https://arxiv.org/abs/1704.04368 (copying). Made with torch 2.13.0 (CPU).

For each case of CASES, in float32:
    CASE/params/NAME, CASE/grads/NAME   under the names and in the layout of bigjax.models.seq2seq
    CASE/log_p [B, T, V], CASE/loss []  loss = sum(weights * cross-entropy) / sum(weights), in nats
and once for all: source, source_segments [B, S]; inputs, targets, weights [B, T].
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
V, D, LAYERS = 23, 8, 2
LENGTHS = [(7, 5), (4, 6), (1, 1)]  # of source and target
GATES = {"lstm": 4, "gru": 3}
CASES = {  # cell, score, copy
    "lstm_additive": ("lstm", "additive", False),
    "gru_dot": ("gru", "dot", False),
    "lstm_dot_copy": ("lstm", "dot", True),
    "gru_additive_copy": ("gru", "additive", True),
}


def shapes(cell, score, copy):
    half, n = D // 2, LAYERS * (2 if cell == "lstm" else 1)
    out = {"embed/embedding": (V, D), "bias": (V,)}
    for side, width, directions in (
        ("encoder", half, ("forward", "backward")),
        ("decoder", D, ("forward",)),
    ):
        for direction in directions:
            for i in range(LAYERS):
                at, gates = f"{side}/{direction}_{i}", GATES[cell] * width
                out[f"{at}/kernel"], out[f"{at}/bias"] = (D, gates), (gates,)
                out[f"{at}/recurrent_kernel"] = (width, gates)
                if cell == "gru":
                    out[f"{at}/candidate_bias"] = (width,)
    out |= {"initial/kernel": (D, D * n), "initial/bias": (D * n,)}
    out |= {"query/kernel": (D, D), "key/kernel": (D, D)}
    out |= {"mix/kernel": (2 * D, D), "mix/bias": (D,)}
    if score == "additive":
        out["energy/kernel"] = (D, 1)
    if copy:
        out |= {"gate/kernel": (D, 1), "gate/bias": (1,)}
    return out


def step(p, at, cell, x, state):
    """One token of one layer: (output, state)."""
    gates = x @ p[f"{at}/kernel"] + p[f"{at}/bias"]
    kernel = p[f"{at}/recurrent_kernel"]
    if cell == "lstm":
        h, c = state
        i, f, o, g = (gates + h @ kernel).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)
    (h,) = state
    x_r, x_z, x_n = gates.chunk(3)
    h_r, h_z, h_n = (h @ kernel).chunk(3)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * (h_n + p[f"{at}/candidate_bias"]))
    h = (1 - z) * n + z * h
    return h, (h,)


def encode(p, cell, source):
    """[S, D] of the tokens of one source."""
    n_states, half = (2 if cell == "lstm" else 1), D // 2
    layer = [p["embed/embedding"][i] for i in source]
    for i in range(LAYERS):
        halves = []
        for direction in ("forward", "backward"):
            state = (torch.zeros(half),) * n_states
            outputs = []
            for x in layer if direction == "forward" else reversed(layer):
                y, state = step(p, f"encoder/{direction}_{i}", cell, x, state)
                outputs.append(y)
            halves.append(outputs if direction == "forward" else outputs[::-1])
        layer = [torch.cat(pair) for pair in zip(*halves)]
    return torch.stack(layer)


def log_probabilities(p, cell, score, copy, source, inputs):
    """[T, V] of one row."""
    memory = encode(p, cell, source)
    n_states = 2 if cell == "lstm" else 1
    parts = torch.tanh(memory.mean(0) @ p["initial/kernel"] + p["initial/bias"])
    parts = parts.chunk(LAYERS * n_states)
    states = [tuple(parts[i * n_states : (i + 1) * n_states]) for i in range(LAYERS)]
    out = []
    for token in inputs:
        x = p["embed/embedding"][token]
        for i in range(LAYERS):
            x, states[i] = step(p, f"decoder/forward_{i}", cell, x, states[i])
        query, keys = x @ p["query/kernel"], memory @ p["key/kernel"]
        if score == "additive":
            scores = (torch.tanh(query + keys) @ p["energy/kernel"])[:, 0]
        else:
            scores = keys @ query
        share = torch.softmax(scores, 0)
        y = torch.tanh(torch.cat([share @ memory, x]) @ p["mix/kernel"] + p["mix/bias"])
        log_p = F.log_softmax(p["embed/embedding"] @ y + p["bias"], 0)
        if copy:
            gate = torch.sigmoid(y @ p["gate/kernel"] + p["gate/bias"])
            copied = torch.zeros(V).index_add(0, torch.tensor(source), share)
            log_p = torch.log((1 - gate) * log_p.exp() + gate * copied)
        out.append(log_p)
    return torch.stack(out)


def main():
    torch.set_num_threads(1)  # fixes the order of sums, so that the file is reproducible
    rng = np.random.default_rng(0)
    S, T = (max(x) for x in zip(*LENGTHS))
    tokens = lambda n: rng.integers(1, V, (len(LENGTHS), n), dtype=np.int32)
    source, targets = tokens(S), tokens(T)
    segments = np.array([[i < s for i in range(S)] for s, _ in LENGTHS], np.int32)
    weights = np.array([[i < t for i in range(T)] for _, t in LENGTHS], np.float32)
    weights *= rng.choice([0.5, 1.0, 2.0], weights.shape).astype(np.float32)
    inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    arrays = dict(
        source=source, source_segments=segments, inputs=inputs, targets=targets, weights=weights
    )
    for case, (cell, score, copy) in CASES.items():
        p = {
            name: torch.tensor(rng.normal(0, 0.5, shape).astype(np.float32), requires_grad=True)
            for name, shape in shapes(cell, score, copy).items()
        }
        out, total = np.zeros((len(LENGTHS), T, V), np.float32), torch.zeros(())
        for b, (s, t) in enumerate(LENGTHS):
            log_p = log_probabilities(p, cell, score, copy, source[b, :s], inputs[b, :t])
            out[b, :t] = log_p.detach().numpy()
            own = log_p[torch.arange(t), torch.from_numpy(targets[b, :t]).long()]
            total = total - (own * torch.from_numpy(weights[b, :t])).sum()
        loss = total / float(weights.sum())
        loss.backward()
        arrays[f"{case}/log_p"], arrays[f"{case}/loss"] = out, loss.detach().numpy()
        for name, x in p.items():
            arrays[f"{case}/params/{name}"] = x.detach().numpy()
            arrays[f"{case}/grads/{name}"] = x.grad.numpy()
    np.savez_compressed(HERE / "seq2seq.npz", **arrays)


if __name__ == "__main__":
    main()
