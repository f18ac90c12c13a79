"""Losses of preferences, as pure numerics: a value for each pair, or each rated answer.

They read log-probabilities of answers: the sum over an answer's tokens, or `Answers.mean` of them.
Where a paper leaves a choice, it is that of TRL 1.16, with which tests/parity/check_preference.py
compares them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Answers(NamedTuple):
    """Log-probabilities of answers, in nats.

    log_probs: float32 [...], summed over the tokens of each. n: float32 [...], how many tokens.
    reference: float32 [...], of the frozen reference, likewise; None without one.
    """

    log_probs: jax.Array
    n: jax.Array
    reference: jax.Array | None = None

    @property
    def ratio(self) -> jax.Array:
        """log(policy / reference) [...], the implicit reward divided by beta."""
        return self.log_probs - self.reference

    @property
    def mean(self) -> jax.Array:
        """The mean log-probability of a token [...]."""
        return self.log_probs / jnp.maximum(self.n, 1)


def sigmoid(
    chosen: Answers, rejected: Answers, beta: float, label_smoothing: float = 0.0
) -> jax.Array:
    """DPO (https://arxiv.org/abs/2305.18290, eq. 7); with label_smoothing, the assumed share of
    pairs that are the wrong way round, conservative DPO (https://ericmitchell.ai/cdpo.pdf)."""
    return _smoothed(beta * (chosen.ratio - rejected.ratio), label_smoothing)


def robust(
    chosen: Answers, rejected: Answers, beta: float, label_smoothing: float = 0.0
) -> jax.Array:
    """Robust DPO (https://arxiv.org/abs/2403.00409): label_smoothing is the share of pairs
    that are the wrong way round, below 0.5, of which the expected loss is free."""
    x, e = beta * (chosen.ratio - rejected.ratio), label_smoothing
    return ((1 - e) * jax.nn.softplus(-x) - e * jax.nn.softplus(x)) / (1 - 2 * e)


def ipo(chosen: Answers, rejected: Answers, beta: float) -> jax.Array:
    """IPO (https://arxiv.org/abs/2310.12036, eq. 17), of means over the tokens of each answer; beta
    is the paper's tau."""
    per_token = lambda answers: answers.ratio / jnp.maximum(answers.n, 1)
    return jnp.square(per_token(chosen) - per_token(rejected) - 1 / (2 * beta))


def hinge(chosen: Answers, rejected: Answers, beta: float) -> jax.Array:
    """SLiC's calibration loss with DPO's reward (https://arxiv.org/abs/2305.10425,
    https://arxiv.org/abs/2309.06657)."""
    return jax.nn.relu(1 - beta * (chosen.ratio - rejected.ratio))


def orpo(chosen: Answers, rejected: Answers, beta: float) -> jax.Array:
    """The odds-ratio part of ORPO (https://arxiv.org/abs/2403.07691, eq. 7), times beta, the
    paper's lambda; of means over the tokens. It is added to the nll of the chosen answer."""
    log_odds = lambda mean: mean - _log1mexp(mean)
    return beta * jax.nn.softplus(-(log_odds(chosen.mean) - log_odds(rejected.mean)))


def simpo(
    chosen: Answers, rejected: Answers, beta: float, gamma: float, label_smoothing: float = 0.0
) -> jax.Array:
    """SimPO (https://arxiv.org/abs/2405.14734, eq. 6): rewards are means over the tokens, without a
    reference, and have to differ by gamma. label_smoothing: as of `sigmoid`."""
    return _smoothed(beta * (chosen.mean - rejected.mean) - gamma, label_smoothing)


def kto(answers: Answers, is_desirable: jax.Array, kl: jax.Array, beta: float) -> jax.Array:
    """KTO (https://arxiv.org/abs/2402.01306), without the weights of the two classes.

    is_desirable: bool [...]. kl: the reference point [...], at least 0, without a gradient.
    """
    gain = beta * (answers.ratio - kl)
    return jax.nn.sigmoid(jnp.where(is_desirable, -gain, gain))


def bradley_terry(chosen: jax.Array, rejected: jax.Array, margin: jax.Array) -> jax.Array:
    """The negative log-likelihood of pairs by their rewards [...]
    (https://doi.org/10.1093/biomet/39.3-4.324); chosen ones have to be larger by margin [...]
    (https://arxiv.org/abs/2307.09288, eq. 2)."""
    return jax.nn.softplus(-(chosen - rejected - margin))


def _smoothed(x: jax.Array, label_smoothing: float) -> jax.Array:
    """-log sigmoid(x), and label_smoothing of that of the opposite."""
    loss = jax.nn.softplus(-x)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * jax.nn.softplus(x)
    return loss


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of x < 0, accurate near 0 and far below it.

    At 0, a probability of 1, the odds are infinite: x is at most -1e-6 here.
    """
    x = jnp.minimum(x, -1e-6)
    near = x > -0.6931472
    # The branch that is not used must have a finite gradient too.
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, by_expm1, by_log1p)
