"""Trains word vectors: skip-gram with negative sampling (https://arxiv.org/abs/1310.4546)."""

from collections.abc import Callable
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.data.skip_gram import SkipGramData
from bigjax.errors import UserError

_CHUNK = 200  # batches per call: enough to make the overhead small, and few enough for memory
_EPSILON = 1e-8


def fit(
    data: SkipGramData,
    d_model: int,
    steps: int,
    learning_rate: float = 0.2,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> np.ndarray:
    """float32 [V, d_model]: the vector of each of `data.words`, after `steps` batches.

    Only the rows in a batch are read and written. Adagrad with one sum per row
    (https://jmlr.org/papers/v12/duchi11a.html), and a learning rate that decreases linearly to 0.
    `log` gets a few progress lines. Raises UserError for numbers out of range.
    """
    for name, number in (("d_model", d_model), ("steps", steps), ("learning_rate", learning_rate)):
        if not number > 0:
            raise UserError(f"skip-gram's {name} is {number}; it must be positive.")
    started, report = time.monotonic(), max(1, steps // _CHUNK // 10)
    shape = len(data.words), d_model
    # As in word2vec: centres small and random, contexts zero.
    centres = jax.random.uniform(jax.random.key(seed), shape, minval=-0.5, maxval=0.5) / d_model
    state = [(centres, jnp.zeros(shape[0])), (jnp.zeros(shape), jnp.zeros(shape[0]))]
    for i, start in enumerate(range(0, steps, _CHUNK)):
        batches = [data.batch_at(step) for step in range(start, min(start + _CHUNK, steps))]
        rates = learning_rate * (1 - (start + np.arange(len(batches), dtype=np.float32)) / steps)
        # Runs on the device while the host prepares the next batches.
        state, loss = _train(state, np.float32(rates), *_stacked(batches))
        if i % report == 0 or start + _CHUNK >= steps:
            done = start + len(batches)
            log(
                f"skip-gram: step {done:,} of {steps:,}, loss {float(loss):.4f}, "
                f"{done * data.batch_size / (time.monotonic() - started):,.0f} pairs per second"
            )
    return np.asarray(state[0][0])


def _stacked(batches: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """centre int32 [n, B], and int32 [n, B, 1 + K]: the context, followed by the negatives."""
    others = [np.concatenate([b["context"][:, None], b["negatives"]], axis=1) for b in batches]
    return np.stack([b["centre"] for b in batches]), np.stack(others)


@functools.partial(jax.jit, donate_argnums=0)
def _train(state, rates, centre, others):
    """The state after n batches, and the mean loss per pair."""

    def step(state, batch):
        (centres, centre_sums), (contexts, context_sums) = state
        rate, centre_B, others_BN = batch
        v_BD, u_BND = centres[centre_B], contexts[others_BN]
        score_BN = jnp.einsum("BD,BND->BN", v_BD, u_BND)
        is_context = jnp.arange(others_BN.shape[1]) == 0
        sign = jnp.where(is_context, 1.0, -1.0)
        # A negative that equals the context is ignored.
        weight_BN = is_context | (others_BN != others_BN[:, :1])
        loss = -(weight_BN * jax.nn.log_sigmoid(sign * score_BN)).sum(1).mean()
        slope_BN = weight_BN * -sign * jax.nn.sigmoid(-sign * score_BN)  # d loss / d score
        v_grad = jnp.einsum("BN,BND->BD", slope_BN, u_BND)
        u_grad = slope_BN[..., None] * v_BD[:, None]
        centre_state = _adagrad(centres, centre_sums, centre_B, v_grad, rate)
        d_model = v_BD.shape[1]
        context_state = _adagrad(
            contexts, context_sums, others_BN.reshape(-1), u_grad.reshape(-1, d_model), rate
        )
        return [centre_state, context_state], loss

    state, losses = jax.lax.scan(step, state, (rates, centre, others))
    return state, losses.mean()


def _adagrad(table, sums, rows, grads, rate):
    """The table [V, D] and its rows' sums of squares [V] after gradients [n, D] of `rows` [n]."""
    sums = sums.at[rows].add(jnp.square(grads).mean(1))
    steps = rate * grads * jax.lax.rsqrt(sums[rows] + _EPSILON)[:, None]
    return table.at[rows].add(-steps), sums
