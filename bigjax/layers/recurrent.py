"""Recurrent layers (LSTM, GRU and tanh RNN) over full sequences or one token at a time."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.config import nearest
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, add_bias
from bigjax.layers.params import weight
from bigjax.parallel.sharding import constrain

CELLS = ("lstm", "gru", "rnn")


class Weights(NamedTuple):
    """The weights of the loop over time of one layer, float32, with G gates of width H."""

    recurrent_kernel: jax.Array  # [H, G*H]
    bias: jax.Array  # [G*H]
    candidate_bias: jax.Array | None  # [H], GRU only


# --- Cells: from x_BG = x W + b [B, G*H] and the state to (h [B, H], new state) --------------


def lstm_cell(x_BG: jax.Array, state: tuple, w: Weights) -> tuple[jax.Array, tuple]:
    """Gates: input, forget, output, candidate; state (h, c). https://arxiv.org/abs/1409.2329"""
    h, c = state
    i, f, o, g = jnp.split(x_BG + _dot(h, w.recurrent_kernel), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, (h, c)


def gru_cell(x_BG: jax.Array, h: jax.Array, w: Weights) -> tuple[jax.Array, jax.Array]:
    """Gates: reset, update, candidate; state h. https://arxiv.org/abs/1406.1078

    The reset gate is applied after the matrix product, as in PyTorch and cuDNN, so that one product
    serves all gates; the candidate then has a second bias, which the gate multiplies too.
    """
    x_r, x_z, x_n = jnp.split(x_BG, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(_dot(h, w.recurrent_kernel), 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h_r)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * add_bias(h_n, w.candidate_bias))
    h = (1 - z) * n + z * h
    return h, h


def rnn_cell(x_BG: jax.Array, h: jax.Array, w: Weights) -> tuple[jax.Array, jax.Array]:
    """No gates; state h. https://doi.org/10.1207/s15516709cog1402_1"""
    h = jnp.tanh(x_BG + _dot(h, w.recurrent_kernel))
    return h, h


def _dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the dtype of x. The cast is inside the loop over time, so that the gradient of
    the kernel is accumulated in float32."""
    return x @ kernel.astype(x.dtype)


CELL_FUNCTIONS = {"lstm": lstm_cell, "gru": gru_cell, "rnn": rnn_cell}
N_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def empty_state(
    cell: str,
    n_layers: int,
    batch: int,
    d_model: int,
    dtype: Any = "float32",
    bidirectional: bool = False,
) -> tuple:
    """The initial state, zeros: a tuple over layers of h [batch, d_model] (LSTM: pairs (h, c)).

    bidirectional: each layer has two entries, forward and backward. The batch is the first axis of
    all arrays, so tree_map can repeat or select rows. Raises UserError for an unknown cell.
    """
    _check_cell(cell)
    zeros = lambda: jnp.zeros((batch, d_model), dtype)
    return tuple(
        (zeros(), zeros()) if cell == "lstm" else zeros()
        for _ in range(n_layers * (1 + bidirectional))
    )


def _check_cell(cell: str) -> None:
    if cell not in CELLS:
        raise UserError(f"Unknown recurrent cell {cell!r}. {nearest(cell, CELLS)}")


# --- Layers ----------------------------------------------------------------------------------


class Layer(nn.Module):
    """One layer in one direction."""

    cell: str
    d_model: int
    reverse: bool
    scan: bool
    init_std: float
    dtype: str

    def setup(self):
        gates = N_GATES[self.cell] * self.d_model
        options = dict(use_bias=False, init_std=self.init_std, dtype=self.dtype)
        self.input = Dense((gates,), ("embed",), (None,), **options)
        nn.share_scope(self, self.input)  # its kernel is beside the others

    @nn.compact
    def weights(self) -> Weights:
        """The parameters, except the kernel of the input.

        The rows are sharded along "embed", as in any kernel. The gates are not sharded: with tensor
        parallelism, h would have to be gathered from all devices after every token.
        """
        H, GH = self.d_model, N_GATES[self.cell] * self.d_model
        normal, zeros = nn.initializers.normal(self.init_std), nn.initializers.zeros

        def get(name, init, shape, axes):
            # Gathered before the loop over time: sharded rows would be gathered for every token.
            return weight(self, name, init, shape, axes, jnp.float32, gather="all")

        return Weights(
            get("recurrent_kernel", normal, (H, GH), ("embed", None)),
            get("bias", zeros, (GH,), (None,)),
            get("candidate_bias", zeros, (H,), (None,)) if self.cell == "gru" else None,
        )

    def __call__(self, x_TBD: jax.Array, mask_TB1: jax.Array | None, state) -> tuple:
        """(y_TBH, state), time first for the loop over it."""
        # One large product for all times; the loop has only the product with h.
        x_TBG = self.input(x_TBD)
        w = self.weights()
        x_TBG = constrain(add_bias(x_TBG, w.bias), "length", "batch", None)

        def advance(old, now):
            x_BG, mask_B1 = now
            h, new = CELL_FUNCTIONS[self.cell](x_BG, old, w)
            if mask_B1 is None:
                return new, h
            keep = lambda a, b: jnp.where(mask_B1, a, b)
            return jax.tree_util.tree_map(keep, new, old), keep(h, 0)

        loop = jax.lax.scan if self.scan else _unrolled
        state, y_TBH = loop(advance, state, (x_TBG, mask_TB1), reverse=self.reverse)
        return y_TBH, state

    def step(self, x_BD: jax.Array, state) -> tuple:
        """(y_BH, state) after one token."""
        x_BG = self.input(x_BD)
        w = self.weights()
        return CELL_FUNCTIONS[self.cell](add_bias(x_BG, w.bias), state, w)


def _unrolled(f, carry, xs, reverse: bool) -> tuple:
    """jax.lax.scan as a Python loop."""
    T = jax.tree_util.tree_leaves(xs)[0].shape[0]
    ys = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        carry, ys[t] = f(carry, jax.tree_util.tree_map(lambda x: x[t], xs))
    return carry, jnp.stack(ys)


class Recurrent(nn.Module):
    """n_layers of LSTM, GRU or tanh RNN; layer i reads the output of layer i - 1.

    Parameters, under forward_0, forward_1, ... (and backward_0, ...): kernel [D, G*H],
    recurrent_kernel [H, G*H], bias [G*H]; GRU also candidate_bias [H]. G gates in the order of
    the cell's function. Kernels are initialised with normal(init_std), all biases with zeros (also
    that of the LSTM's forget gate). Raises UserError for an unknown cell, a size below 1, and a
    mask or state of the wrong shape.
    """

    cell: str = "lstm"  # lstm, gru, rnn
    d_model: int = 32  # H, the width of h
    n_layers: int = 1
    bidirectional: bool = False  # https://doi.org/10.1109/78.650093
    scan: bool = True  # scan over time; False unrolls it
    init_std: float = 0.1
    dtype: str = "float32"

    def setup(self):
        _check_cell(self.cell)
        for name in ("d_model", "n_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"Recurrent: {name} is {getattr(self, name)}; it must be positive.")
        layers = lambda reverse: [
            Layer(self.cell, self.d_model, reverse, self.scan, self.init_std, self.dtype)
            for _ in range(self.n_layers)
        ]
        self.forward = layers(reverse=False)
        self.backward = layers(reverse=True) if self.bidirectional else ()

    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array | None = None, state=None) -> tuple:
        """(y [B, T, H], state); bidirectional: y [B, T, 2H], the forward half first.

        mask: False = padding, which does not change the state, and where y is 0. So the backward
        direction starts at the last real token of a padded row, as with PyTorch's packed
        sequences. state: from empty_state or an earlier call; None = zeros. The returned state is
        the one after the last token (backward: after the first).
        """
        B, T, _ = x_BTD.shape
        if mask_BT is not None and mask_BT.shape != (B, T):
            raise UserError(
                f"Recurrent: the mask has shape {mask_BT.shape}, the input "
                f"{x_BTD.shape}. Give a mask with one value per token: {(B, T)}."
            )
        state = self._begin(state, B)
        x_TBD = jnp.swapaxes(x_BTD, 0, 1).astype(self.dtype)
        mask_TB1 = None if mask_BT is None else mask_BT.T[..., None].astype(bool)
        new = []
        for i in range(self.n_layers):
            halves = []
            for layers in (self.forward, self.backward)[: 1 + self.bidirectional]:
                y_TBH, s = layers[i](x_TBD, mask_TB1, state[len(new)])
                halves.append(y_TBH)
                new.append(s)
            x_TBD = jnp.concatenate(halves, axis=-1)
        return constrain(jnp.swapaxes(x_TBD, 0, 1), "batch", "length", "act_embed"), tuple(new)

    def step(self, x_BD: jax.Array, state) -> tuple:
        """(y_BH, state) after one token, as __call__ on a sequence of one.

        Raises UserError if bidirectional: the backward direction starts at the last token.
        """
        if self.bidirectional:
            raise UserError(
                "Recurrent.step: bidirectional=True cannot step token by token, since its backward "
                "direction starts at the last token. Call it on the full sequence, or set "
                "bidirectional=False."
            )
        x_BD, new = x_BD.astype(self.dtype), []
        for layer, s in zip(self.forward, self._begin(state, x_BD.shape[0])):
            x_BD, s = layer.step(x_BD, s)
            new.append(s)
        return x_BD, tuple(new)

    def _begin(self, state, batch: int) -> tuple:
        """The initial state in the compute dtype; zeros if there is none."""
        empty = empty_state(
            self.cell, self.n_layers, batch, self.d_model, self.dtype, self.bidirectional
        )
        if state is None:
            return empty
        shapes = lambda tree: jax.tree_util.tree_map(jnp.shape, tree)
        if shapes(state) != shapes(empty):
            raise UserError(
                f"Recurrent: the state has shapes {shapes(state)}; a {self.cell} of n_layers="
                f"{self.n_layers}, d_model={self.d_model}, bidirectional={self.bidirectional} "
                f"needs {shapes(empty)} for {batch} rows. Create it with empty_state."
            )
        return jax.tree_util.tree_map(lambda x: x.astype(self.dtype), state)
