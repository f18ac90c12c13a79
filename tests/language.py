"""A language so small that all texts can be listed, for tests of adversarial training.

The generator is a table of logits by position and last token, the discriminator a table with one
logit per text.
"""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax import losses
from bigjax.models import Decoder
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import GAN, discriminate, shift_right, token_mask
from bigjax.projects.seqgan.training_options import TrainingOptions
from bigjax.train.state import make_init

T = 3
END, PAD = 2, 3  # in the language with an end; its words are 0 and 1
LANGUAGES = {"fixed length": (3, -1), "with an end": (4, END)}  # V, end_id


def text_index(tokens, V):
    """The index of each text: int [B]."""
    return (tokens * V ** jnp.arange(T)).sum(1)


def make_gan(V=3, end_id=-1, **options) -> GAN:
    """A batch may have a topic, int [B]: then the generator writes that word and no other."""
    forbidden = -1e9 * (jnp.arange(V) == PAD)  # the generator writes no padding

    def context(batch):
        none = jnp.full(len(batch["tokens"]), -1)
        return {"topic": batch.get("topic", none)}

    def prefer(context):
        return 1e3 * jax.nn.one_hot(context["topic"], V)

    def begin(variables, context, slots):
        return {"position": jnp.zeros(len(context["topic"]), jnp.int32), "topic": prefer(context)}

    def step(variables, state, tokens):
        table = variables["params"]["table"]
        logits = table[state["position"], tokens] + forbidden + state["topic"]
        return logits, {**state, "position": state["position"] + 1}

    def logits(params, context, inputs, rng):
        return params["table"][jnp.arange(T), inputs] + forbidden + prefer(context)[:, None]

    def discriminator(params, context, tokens, mask, rng, shared):
        del shared
        odds = params["worth"][text_index(jnp.where(mask, tokens, 0), V)]
        return jnp.stack([jnp.zeros_like(odds), odds], 1), None

    return GAN(
        TrainingOptions(**options),
        T,
        start_id=0,
        end_id=end_id,
        pad_id=PAD,
        decoder=Decoder(lambda ids: None, begin, step, T),
        context=context,
        logits=logits,
        loss=lambda params, context, inputs, targets, weights, rng: losses.cross_entropy(
            logits(params, context, inputs, rng), targets, weights
        ),
        discriminator=discriminator,
        penalty=lambda params: 0.5 * jnp.square(params["worth"]).sum(),
    )


def make_task(gan: GAN, V=3):
    """A task with tables of normally distributed numbers."""

    def init(rng):
        keys = jax.random.split(rng, 3)
        table, old = jax.random.normal(keys[0], (2, T, V, V))
        worth = 2 * jax.random.normal(keys[1], (V**T,))
        return {
            "params": {"generator": {"table": table}, "discriminator": {"worth": worth}},
            "rollout": {"table": table},
            "reference": {"table": old},
        }

    def loss(params, extras, frozen, batch, rng, train):
        g, tokens = params["generator"], batch["tokens"]
        inputs = batch.get("inputs", shift_right(gan, tokens))
        return gan.loss(
            g,
            gan.context(batch),
            inputs,
            tokens,
            token_mask(gan, tokens).astype(jnp.float32),
            rng,
        ), ({}, extras)

    return SimpleNamespace(gan=gan, init=init, loss=loss)


@functools.cache
def _compiled(V, end_id, rates, seed, options):
    """(initial state, round function). rates: of SGD, or () for Adam."""
    txs = {
        k: optax.sgd(rates[k == "discriminator"]) if rates else optax.adam(0.05)
        for k in ("mle", "adversarial", "discriminator")
    }
    task = make_task(make_gan(V, end_id, **dict(options)), V)
    state = make_init(task, functools.partial(train_step.init_optimizers, txs), 3, False)()
    return state, jax.jit(train_step.make_round(task, txs, seed))


def run_phase(phase, batch, rates=(1.0, 1.0), V=3, end_id=-1, state=None, seed=0, **options):
    """(state before, state after, metrics) of one round. batch: leaves [B, batches, ...]; rates:
    of SGD for the generator and the discriminator, () = Adam."""
    first, run_round = _compiled(V, end_id, rates, seed, tuple(sorted(options.items())))
    state = first if state is None else state
    return state, *run_round(state, None, {phase: batch})


def texts(B, batches, V=3, seed=0):
    """{"tokens": random [B, batches, T]}."""
    tokens = np.random.default_rng(seed).integers(0, V, (B, batches, T))
    return {"tokens": jnp.asarray(tokens, jnp.int32)}


def all_texts(V, end_id) -> np.ndarray:
    """All texts that a generator can write, [N, T]."""
    every = np.array(list(itertools.product(range(V), repeat=T)))
    if end_id < 0:
        return every
    ended = np.cumsum(every == END, 1) - (every == END) > 0
    return every[((every == PAD) == ended).all(1)]


def log_probability(p, params, every, start=0):
    """The log-probability of each text from token `start` on, given those before: [N]."""
    log_p = jax.nn.log_softmax(
        p.logits(params, p.context({"tokens": every}), shift_right(p, every), None)
    )
    chosen = jnp.take_along_axis(log_p, every[..., None], -1)[..., 0]
    return (chosen * token_mask(p, every))[:, start:].sum(1)


def reward_of(p, discriminator, every):
    logits, _ = discriminate(p, discriminator, {}, every)
    odds = logits[:, 1] - logits[:, 0]
    return odds if p.options.reward == "log_odds" else jax.nn.sigmoid(odds)


def nll(p, params, tokens):
    return float(-log_probability(p, params, tokens.reshape(-1, T)).mean())
