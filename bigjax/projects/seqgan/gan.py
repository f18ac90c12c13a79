"""A generator and a discriminator as pure functions, and the texts that the generator samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.infer.rollout import sample_continuation
from bigjax.layers.sampling import categorical
from bigjax.models import Decoder
from bigjax.projects.seqgan.training_options import TrainingOptions


class GAN(NamedTuple):
    """The generator and the discriminator as pure functions of their parameters.

    Texts are int [B, T]. A context is what they are conditioned on, arrays with B rows.

    options: how they are trained.
    length: T.
    start_id: the token that the generator reads first.
    end_id: the last token of a text; -1: all texts have T tokens. pad_id: follows the end.
    decoder: the generator's, for {'params': its parameters}.
    context(batch) -> the context of a batch, also the decoder's.
    logits(params, context, inputs_BT, rng) -> the generator's logits_BTV.
    loss(params, context, inputs_BT, targets_BT, weights_BT, rng) -> (loss_sum, weight_sum), its
        cross-entropy.
    discriminator(params, context, tokens_BT, mask_BT, rng, shared) -> (logits_B2 of generated and
        of real, the logit_B of the quantile of clicks, None if it predicts none). shared: (n,
        rows), the first n < T tokens are the same in each `rows` neighbouring rows.
    penalty(params of the discriminator) -> the scalar that task.discriminator_l2 multiplies.
    clicks(context) -> (quantile_B of the clicks, known_B).
    click_reward: weight of the predicted quantile in the reward.
    """

    options: TrainingOptions
    length: int
    start_id: int
    end_id: int
    pad_id: int
    decoder: Decoder
    context: Callable[[dict], Any]
    logits: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    discriminator: Callable[..., tuple[jax.Array, jax.Array | None]]
    penalty: Callable[[Any], jax.Array]
    clicks: Callable[[Any], tuple[jax.Array, jax.Array]] | None = None
    click_reward: float = 0.0


def unconditional(family, c, options: TrainingOptions, length: int) -> GAN:
    """The GAN of a family such as seqgan.model: texts of `length` tokens after token 0."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    return GAN(
        options,
        length,
        start_id=0,
        end_id=-1,
        pad_id=0,
        decoder=family.generator_decoder(c),
        context=lambda batch: empty_context(len(batch["tokens"])),
        logits=lambda params, context, inputs, rng: generator.apply(
            {"params": params}, inputs, rng
        ),
        loss=lambda params, context, inputs, targets, weights, rng: generator.apply(
            {"params": params}, inputs, targets, weights, rng, method="loss"
        ),
        discriminator=lambda params, context, tokens, mask, rng, shared: (
            discriminator.apply({"params": params}, tokens, mask, rng, shared),
            None,
        ),
        penalty=lambda params: half_sum_of_squares(family.last_layer(params)),
    )


def empty_context(rows: int) -> dict[str, jax.Array]:
    """The context of texts without a condition: prefixes of no tokens."""
    return {"tokens": jnp.zeros((rows, 0), jnp.int32), "lengths": jnp.zeros(rows, jnp.int32)}


def half_sum_of_squares(params) -> jax.Array:
    """Half the sum of the squares of all parameters, the usual L2 penalty."""
    return sum(0.5 * jnp.square(x).sum() for x in jax.tree_util.tree_leaves(params))


def discriminate(
    gan: GAN,
    params,
    context,
    tokens_BT: jax.Array,
    rng: jax.Array | None = None,
    shared: tuple[int, int] = (0, 1),
) -> tuple[jax.Array, jax.Array | None]:
    """GAN.discriminator with the mask of the texts. params: the discriminator's."""
    return gan.discriminator(params, context, tokens_BT, token_mask(gan, tokens_BT), rng, shared)


def shift_right(gan: GAN, tokens_BT: jax.Array) -> jax.Array:
    """The inputs from which the generator predicts these tokens, int [B, T]."""
    return jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)), constant_values=gan.start_id)


def token_mask(gan: GAN, tokens_BT: jax.Array) -> jax.Array:
    """True for the tokens of a text and its end token, False for padding, bool [B, T]."""
    if gan.end_id < 0:
        return jnp.ones_like(tokens_BT, bool)
    ended = jnp.cumsum(tokens_BT == gan.end_id, axis=1)
    return (ended == 0) | ((ended == 1) & (tokens_BT == gan.end_id))


def repeat_rows(tree, n: int):
    """The tree with each row of its arrays n times."""
    return jax.tree_util.tree_map(lambda x: jnp.repeat(x, n, axis=0), tree)


def sample_texts(
    gan: GAN,
    params,
    context,
    rng: jax.Array,
    *,
    number: int = 1,
    choose: Callable[[jax.Array, jax.Array], jax.Array] = categorical,
) -> jax.Array:
    """`number` texts per row of the context, int32 [B * number, T].

    params: the generator's. choose: as of rollout.sample_continuation.
    """
    variables = {"params": params}
    state = repeat_rows(gan.decoder.begin(variables, context, gan.length), number)
    rows = len(jax.tree_util.tree_leaves(state)[0])
    start = jnp.full(rows, gan.start_id, jnp.int32)
    return sample_continuation(
        gan.decoder,
        variables,
        state,
        start,
        rng,
        gan.length,
        end_id=gan.end_id,
        pad_id=gan.pad_id,
        choose=choose,
    )


def before_end(tokens: list[int], end_id: int) -> list[int]:
    """The tokens before the first end token."""
    return tokens[: tokens.index(end_id)] if end_id in tokens else tokens
