"""Freezes reference numerics of torch's LSTM, GRU and RNN for test_recurrent.py.

    python tests/parity/make_recurrent.py        # needs PyTorch; no jax, no bigjax

writes recurrent.npz beside itself. Made with torch 2.13.0 (CPU).

For every case CELL-LAYERS-DIRECTIONS-full and ...-packed (rows shorter than T, given to torch as
packed sequences, with noise in the padding), in float32, B rows, width D in and H out:
    x [B, T, D], lengths int [B]
    state      initial, [S, L, B, H]. S: h (LSTM: h, c). L: layers, and in each layer directions
    y          [B, T, H * directions], new_state [S, L, B, H]
    y_weights, state_weights   loss = sum(y_weights * y) + sum(state_weights * new_state)
    params, grads   all weights, converted to the layout of bigjax.layers.recurrent, and the
                    gradients of the loss: one vector, in the order of the sorted names
    x_grad, state_grad         the gradients with respect to x and state
"""

import itertools
import pathlib

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = pathlib.Path(__file__).parent
B, T, D, H = 4, 6, 5, 3
LENGTHS = [4, 6, 1, 3]
MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
# The index in torch of each of our gates: its LSTM has input, forget, candidate, output.
ORDER = {"lstm": (0, 1, 3, 2), "gru": (0, 1, 2), "rnn": (0,)}


def gates(cell, x):
    """torch's [G*H, ...] in our order of gates."""
    return np.concatenate([x[i * H : (i + 1) * H] for i in ORDER[cell]])


def converted(cell, layers, directions, get, of_gradients):
    """{our name: array} from get(torch's name). The gradient of a sum is that of each part."""
    out = {}
    for i in range(layers):
        for ours, suffix in (("forward", ""), ("backward", "_reverse"))[:directions]:
            part = lambda name: gates(cell, get(f"{name}_l{i}{suffix}"))
            bias, recurrent_bias = part("bias_ih"), part("bias_hh")
            if cell == "gru":
                out[f"{ours}_{i}/candidate_bias"] = recurrent_bias[2 * H :].copy()
                recurrent_bias[2 * H :] = 0  # not in the sum
            out[f"{ours}_{i}/bias"] = bias if of_gradients else bias + recurrent_bias
            out[f"{ours}_{i}/kernel"] = part("weight_ih").T
            out[f"{ours}_{i}/recurrent_kernel"] = part("weight_hh").T
    return np.concatenate([out[name].ravel() for name in sorted(out)])


def run(module, x, state, lengths):
    """y [B, T, ...] and the list of final states."""
    state = tuple(state) if isinstance(module, torch.nn.LSTM) else state[0]
    if lengths is None:
        y, new = module(x, state)
    else:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, new = module(packed, state)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=T)
    return y, torch.stack(new) if isinstance(new, tuple) else new[None]


def freeze(cell, layers, directions, packed, rng):
    """The arrays of one case. Weights are large enough for gates to be far from linear."""
    draw = lambda *shape: torch.from_numpy(rng.normal(0, 0.7, shape).astype(np.float32))
    module = MODULES[cell](D, H, layers, batch_first=True, bidirectional=directions == 2)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(draw(*p.shape))
    x = draw(B, T, D).requires_grad_()
    state = draw(1 + (cell == "lstm"), layers * directions, B, H).requires_grad_()
    lengths = torch.tensor(LENGTHS if packed else [T] * B)
    y, new_state = run(module, x, state, lengths if packed else None)
    y_weights, state_weights = draw(*y.shape), draw(*new_state.shape)
    ((y * y_weights).sum() + (new_state * state_weights).sum()).backward()
    named = dict(module.named_parameters())
    convert = lambda get, of_gradients: converted(cell, layers, directions, get, of_gradients)
    tensors = dict(
        x=x,
        lengths=lengths,
        state=state,
        y=y,
        new_state=new_state,
        y_weights=y_weights,
        state_weights=state_weights,
        x_grad=x.grad,
        state_grad=state.grad,
    )
    return {
        **{name: t.detach().numpy() for name, t in tensors.items()},
        "params": convert(lambda name: named[name].detach().numpy(), False),
        "grads": convert(lambda name: named[name].grad.numpy(), True),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # fixes the order of sums, so that the file is reproducible
    rng, arrays = np.random.default_rng(5), {}
    for cell, layers, directions, packed in itertools.product(
        MODULES, (1, 2), (1, 2), (False, True)
    ):
        case = f"{cell}-{layers}-{directions}-{'packed' if packed else 'full'}"
        for name, x in freeze(cell, layers, directions, packed, rng).items():
            arrays[f"{case}/{name}"] = x
    path = HERE / "recurrent.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {len(arrays)} arrays")
