"""Adversarial training: its options, its rounds, its networks and what they write."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.bounds import POSITIVE, SHARE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.sampling import categorical
from bigjax.models import Decoder
from bigjax.parallel.sharding import constrain

PHASES = ("mle", "discriminator", "adversarial")


@dataclasses.dataclass(frozen=True)
class Options:
    """A step of the loop is a round of many updates: first `mle_rounds` that teach the generator
    by maximum likelihood, then `discriminator_rounds`, then adversarial ones up to train.steps.
    """

    mle_rounds: int = 20
    mle_updates: int = 157  # in each of them
    discriminator_rounds: int = 1
    pretrain_updates: int = 157  # in each of them
    generator_updates: int = 1  # in each adversarial round, before the discriminator's
    discriminator_updates: int = 16
    negatives: int = 0  # batches the generator writes for a round's discriminator; 0 = all new

    adversarial_learning_rate: float = 1e-2  # of the generator, constant
    discriminator_learning_rate: float = 1e-4  # constant
    discriminator_l2: float = 0.2  # of its last layer, half the sum of squares
    scheduled_sampling: float = 0.0  # in MLE the last round reads so many of its own tokens

    reward: str = "probability"  # that it is real; log_odds of that; constant (no discriminator)
    rollouts: int = 16  # continuations of each prefix; 0: the whole text's reward for each token
    rollout_rate: float = 0.8  # of the old rollout policy that remains after a round
    baseline: str = "none"  # none, batch (the mean reward at each place)
    standardize: bool = False  # rewards of a batch to deviation 1
    entropy: float = 0.0  # weight of the entropy bonus
    teacher_forcing: float = 0.0  # weight of maximum likelihood in adversarial updates
    # With the generator q that MLE gave, the reward of a text x has two more terms. Together with
    # log_odds, kl=1 and no baseline but the batch's, the best generator is proportional to
    # q(x)^(1 + likelihood) * odds(x): whole texts sharpened, where temperature sharpens each word.
    likelihood: float = 0.0  # weight of log q(x)
    kl: float = 0.0  # weight of log q(x) - log p(x), p the generator itself

    MAY_CHANGE = (
        *("negatives", "*_learning_rate", "discriminator_l2", "scheduled_sampling", "rollout*"),
        *("baseline", "standardize", "entropy", "teacher_forcing", "likelihood", "kl"),
    )
    RANGES = {
        **dict.fromkeys(("mle_updates", "pretrain_updates", "generator_updates"), at_least(1)),
        **dict.fromkeys(("mle_rounds", "discriminator_rounds", "negatives"), at_least(0)),
        **dict.fromkeys(("discriminator_updates", "rollouts", "discriminator_l2"), at_least(0)),
        **dict.fromkeys(("entropy", "teacher_forcing", "likelihood", "kl"), at_least(0)),
        **dict.fromkeys(("adversarial_learning_rate", "discriminator_learning_rate"), POSITIVE),
        **dict.fromkeys(("scheduled_sampling", "rollout_rate"), SHARE),
    }

    def __post_init__(self):
        check_ranges("task", self)
        for name, allowed in (
            ("reward", ("probability", "log_odds", "constant")),
            ("baseline", ("none", "batch")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"task.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}."
                )

        others = (self.likelihood, self.kl, self.entropy, self.teacher_forcing)
        if self.constant and self.baseline == "batch" and not any(others):
            raise UserError(
                "task.reward='constant' less task.baseline='batch' is 0 everywhere: "
                "set task.baseline='none', or one of likelihood, kl, entropy and "
                "teacher_forcing."
            )

    @property
    def constant(self) -> bool:
        """Whether there is no discriminator: the control that every reward is 1/2."""
        return self.reward == "constant"

    def describe(self, steps: int) -> str:
        """How many rounds of each kind there are."""
        return ", ".join(f"{rounds} {phase}" for phase, _, rounds in self.phases(steps))

    def phases(self, steps: int) -> list[tuple[str, int, int]]:
        """(phase, its first round, how many it has) of a run of `steps` rounds."""
        found, first = [], 0
        for phase, rounds, _ in self._schedule():
            n = min(steps - first, steps if rounds is None else rounds)
            if n > 0:
                found.append((phase, first, n))
            first += n
        return found

    def round(self, step: int) -> tuple[str, int, int]:
        """(phase, batches of real text in this round, those in all rounds before it).

        A discriminator's update takes half a batch of real text.
        """
        before = 0
        for phase, rounds, batches in self._schedule():
            if rounds is None or step < rounds:
                return phase, batches, before + step * batches
            step, before = step - rounds, before + rounds * batches

    def _schedule(self) -> list[tuple[str, int | None, int]]:
        """(phase, its rounds, batches of real text in each); None: all that are left."""
        d = 0 if self.constant else 1
        of_phase = (
            (self.mle_rounds, self.mle_updates),
            (self.discriminator_rounds * d, -(-self.pretrain_updates // 2)),
            (None, self.generator_updates + d * -(-self.discriminator_updates // 2)),
        )
        return [(phase, *counts) for phase, counts in zip(PHASES, of_phase)]


class GAN(NamedTuple):
    """The generator and the discriminator as pure functions, for rounds.py.

    Rows of text are int [B, T]. `given` is what they are conditioned on, arrays with B rows ({} =
    nothing); a context is what the generator made of it.
    """

    options: Options
    length: int  # T
    start_id: int  # what is read before the first token
    end_id: int  # the last token of a text; -1: all have T tokens
    pad_id: int  # what follows the end
    context: Callable[..., Any]  # (params, given, rng) -> context, rows first
    begin: Callable[..., Any]  # (B) -> state, rows first
    step: Callable[..., Any]  # (params, context, state, tokens_B) -> (logits_BV, state)
    logits: Callable[..., Any]  # (params, context, inputs_BT, rng) -> logits_BTV
    loss: Callable[..., Any]  # (params, context, inputs, targets, weights_BT, rng) -> (sum, weight)
    # (params, given, tokens_BT, mask_BT, rng) -> logits_B2, or with them the logit_B of clicks
    score: Callable[..., Any]
    penalty: Callable[..., Any]  # (params of the discriminator) -> what L2 weighs
    clicks: Callable[..., Any] | None = None  # (given) -> (quantile_B of the clicks, known_B)
    click_reward: float = 0.0  # weight of the predicted quantile beside the reward of being real


def half_sum_of_squares(params) -> jax.Array:
    """Half the sum of squares, as L2 weighs parameters."""
    return sum(0.5 * jnp.square(x).sum() for x in jax.tree_util.tree_leaves(params))


def discriminate(
    gan: GAN, params, given, tokens_BT: jax.Array, rng: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """What the discriminator (its params) says of texts: logits_B2 of generated and of real, and
    the logit_B of the quantile of clicks, None if it predicts none."""
    found = gan.score(params, given, tokens_BT, token_mask(gan, tokens_BT), rng)
    return found if isinstance(found, tuple) else (found, None)


def shift_right(gan: GAN, tokens_BT: jax.Array) -> jax.Array:
    """What the generator reads to predict these tokens: int [B, T]."""
    return jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)), constant_values=gan.start_id)


def token_mask(gan: GAN, tokens_BT: jax.Array) -> jax.Array:
    """True up to the end token and on it, bool [B, T]."""
    if gan.end_id < 0:
        return jnp.ones_like(tokens_BT, bool)
    ended = jnp.cumsum(tokens_BT == gan.end_id, axis=1)
    return (ended == 0) | ((ended == 1) & (tokens_BT == gan.end_id))


def write(
    gan: GAN, params, context, rng: jax.Array, batch: int, choose: Callable = categorical
) -> jax.Array:
    """Texts from the generator (its params), int32 [batch, T]. choose: see sample_continuation."""
    start = jnp.full(batch, gan.start_id, jnp.int32)
    return sample_continuation(
        gan, params, context, gan.begin(batch), start, rng, gan.length, choose
    )


def sample_continuation(
    gan: GAN,
    params,
    context,
    state,
    tokens_B: jax.Array,
    rng: jax.Array,
    n: int,
    choose: Callable = categorical,
) -> jax.Array:
    """n more tokens of each row, int32 [B, n].

    state: before it reads tokens_B, the last ones. choose(logits_BV, rng) -> tokens_B.
    """
    params = whole(params)

    def one(carry, key):
        token, state = carry
        logits, state = gan.step(params, context, state, token)
        new = choose(logits, key)
        if gan.end_id >= 0:
            ended = (token == gan.end_id) | (token == gan.pad_id)
            new = jnp.where(ended, gan.pad_id, new)
        return (new, state), new

    _, new = jax.lax.scan(one, (tokens_B, state), jax.random.split(rng, n))
    return new.T


def whole(params):
    """Parameters gathered before a loop over tokens: cut ones would be gathered at every token."""
    return jax.tree_util.tree_map(lambda x: constrain(x, *[None] * x.ndim), params)


def states_of(gan: GAN, params, context, tokens_BT: jax.Array):
    """The generator's states before it reads each token but the first start: leaf [T, B, ...].

    The state at t has read all that comes before token t: `sample_continuation` starts there.
    """
    params = whole(params)

    def one(state, token):
        _, state = gan.step(params, context, state, token)
        return state, state

    inputs = shift_right(gan, tokens_BT)
    return jax.lax.scan(one, gan.begin(len(tokens_BT)), inputs.T)[1]


def decoder(gan: GAN) -> Decoder:
    """The generator (its params), for infer's search; its contexts are `GAN.context`'s."""

    def begin(params, context, slots):
        del slots  # all texts have room for gan.length
        rows = len(jax.tree_util.tree_leaves(context)[0])
        return context, gan.begin(rows)

    def step(params, state, tokens_B):
        context, state = state
        logits, state = gan.step(params, context, state, tokens_B)
        return logits, (context, state)

    def context(ids):
        raise NotImplementedError("what a headline is written from are no tokens alone")

    return Decoder(context, begin, step, gan.length, continues=False)


def until(tokens: list[int], end_id: int) -> list[int]:
    """What stands before the end token."""
    return tokens[: tokens.index(end_id)] if end_id in tokens else tokens
