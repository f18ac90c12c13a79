"""SeqGAN for headlines: from an article, earlier headlines, clicks and hot words to a headline.

SeqGAN (https://arxiv.org/abs/1609.05473) writes without being told what about; here the generator
has an encoder and attends to the source, and the discriminator sees the source too. It also learns
how often headlines are clicked, which may be part of the reward.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bigjax.bounds import FRACTION, at_least
from bigjax.data import word_vectors
from bigjax.data.store import SPLITS
from bigjax.data.wordpiece import SPECIALS
from bigjax.errors import UserError
from bigjax.projects.seqgan import headline_data
from bigjax.projects.seqgan import model as seqgan
from bigjax.projects.seqgan.augmented import Corpus
from bigjax.projects.seqgan.gan import (
    GAN,
    Options,
    half_sum_of_squares,
)
from bigjax.projects.seqgan.task import adversarial_task, check_training
from bigjax.tasks import Task, check_vocabulary, data_module, family_for


@dataclasses.dataclass(frozen=True)
class Config(Options):
    n_history: int = 2  # earlier headlines that an article comes with, at most
    click_smoothing: float = 100.0  # impressions at the mean rate that each row has besides its own
    hot_words: int = 200  # in the dictionary; 0 = none
    hot_words_file: str = ""  # a word a line, perhaps a tab and its weight; '' = found in the data
    click_reward: float = 0.0  # weight of the predicted quantile of clicks in the reward
    augment: float = 0.0  # share of an article's words that are changed; 0 = off
    augment_headlines: float = 0.0  # the same of real headlines that the discriminator sees
    thesaurus: str = ""  # for augmentation: a group of synonyms a line; '' = `embeddings`, if any
    embeddings: str = ""  # a file of word vectors that the generator's embedding begins with

    MAY_CHANGE = (
        *Options.MAY_CHANGE,
        *("n_history", "click_*", "hot_words*", "augment*", "thesaurus", "embeddings"),
    )
    PATHS = ("hot_words_file", "thesaurus", "embeddings")
    RANGES = {
        **Options.RANGES,
        **dict.fromkeys(("n_history", "click_smoothing", "hot_words", "click_reward"), at_least(0)),
        **dict.fromkeys(("augment", "augment_headlines"), FRACTION),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.thesaurus and not (self.augment or self.augment_headlines):
            raise UserError(
                "task.thesaurus is only for augmentation, which is off: set "
                "task.augment above 0, or task.thesaurus=''."
            )
        if self.click_reward and self.constant:
            raise UserError(
                "task.click_reward needs a discriminator, and task.reward='constant' "
                "has none: set task.click_reward=0, or another reward."
            )
        if self.hot_words_file and not self.hot_words:
            raise UserError(
                "task.hot_words_file is not read with task.hot_words=0: set that to "
                "how many of them to take."
            )


def build(config, options: Config) -> Task:
    """Batches: see data.headlines.HeadlineData; in training several at once, see _headline_data."""
    check_training(config)
    family, c = family_for(
        config,
        "an encoder with a generator (model.name='seqgan.headline_model')",
        lambda family: hasattr(getattr(family, "Generator", None), "context"),
    )
    if options.click_reward and not c.click_buckets:
        raise UserError("task.click_reward needs clicks, and model.click_buckets is 0.")
    headline_options(config, c, options)
    source = data_module(config, "load_headlines", "seqgan.headline_data")

    def load_data(log=print, tokenizer=None, splits=None):
        found = source.load_headlines(
            config.data, headline_options(config, c, options), log, tokenizer, splits or SPLITS
        )
        check_tokenizer(found.tokenizer, c)
        return Corpus(found, options)

    return adversarial_task(
        c,
        make_gan(family, c, options, config.data.seq_len),
        {"generator": family.Generator(c), "discriminator": family.Discriminator(c)},
        _examples(c, config.data.seq_len),
        _batch_row(c),
        load_data,
        prepare=lambda: _prepare(options, c),
    )


def headline_options(config, c, options: Config) -> headline_data.HeadlineOptions:
    """What the data are read with: sizes are the model's; a headline has data.seq_len tokens."""
    return headline_data.HeadlineOptions(
        c.article_len,
        config.data.seq_len,
        options.n_history,
        c.click_buckets,
        options.click_smoothing,
        options.hot_words,
        options.hot_words_file,
        c.hot_per_example,
    )


def make_gan(family, c, options: Config, length: int) -> GAN:
    """The networks of a config, for headlines of `length` tokens. given: a batch's rows."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    of = lambda name: lambda params, *args: generator.apply({"params": params}, *args, method=name)
    context, step, logits, loss = map(of, ("context", "step", "logits", "loss"))
    pad, _, start, end, _ = c.special_ids

    def clicks(given):
        bucket = given["clicks"]
        return jnp.maximum(bucket - 0.5, 0) / c.click_buckets, (bucket > 0).astype(jnp.float32)

    return GAN(
        options,
        length,
        start_id=start,
        end_id=end,
        pad_id=pad,
        context=context,
        begin=lambda batch: family.begin(c, batch),
        step=lambda params, context, state, tokens: step(params, tokens, state, context),
        logits=lambda params, context, inputs, rng: logits(params, inputs, context, rng),
        loss=lambda params, context, inputs, targets, weights, rng: loss(
            params, inputs, targets, weights, context, rng
        ),
        score=lambda params, given, tokens, mask, rng: discriminator.apply(
            {"params": params}, tokens, mask, given, rng
        ),
        penalty=lambda params: half_sum_of_squares(
            [params["head"], seqgan.last_layer(params["text"])]
        ),
        clicks=clicks,
        click_reward=options.click_reward,
    )


def check_tokenizer(tokenizer, c) -> None:
    """Refuses a tokenizer that the model (its Config) has no room for, or that has other ids."""
    check_vocabulary(tokenizer.vocab_size, c.vocab_size)
    ids = (
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.mask_id,
    )
    if ids != tuple(c.special_ids):
        raise UserError(
            f"The tokenizer has the ids {ids} for {', '.join(SPECIALS)}, but "
            f"model.special_ids is {c.special_ids}: set it to {ids}."
        )


def _examples(c, length: int) -> dict[str, tuple]:
    """What the networks are called with: one row."""
    text, given = jnp.zeros((1, length), jnp.int32), _batch_row(c)
    return {"generator": (text, given), "discriminator": (text, text > 0, given)}


def _batch_row(c) -> dict[str, jax.Array]:
    """What a batch has besides the headlines: one row."""
    row = lambda *shape, dtype=jnp.int32: jnp.zeros((1, *shape), dtype)
    real = lambda *shape: row(*shape, dtype=jnp.float32)
    S, K = c.article_len, c.hot_per_example
    return {
        "source": row(S),
        "source_types": row(S),
        "source_mask": real(S),
        "clicks": row(),
        "click_rate": real(),
        "click_weight": real(),
        "hot": row(K),
        "hot_mask": real(K),
        "example": row(),
    }


def _prepare(options: Config, c):
    """Task.prepare: puts the vectors of task.embeddings, if any, into the generator's embedding."""
    if not options.embeddings:
        return lambda params, corpus: params
    vectors = word_vectors.read(options.embeddings)
    if vectors.table.shape[1] != c.d_model:
        raise UserError(
            f"task.embeddings={options.embeddings!r} has vectors of "
            f"{vectors.table.shape[1]} numbers, and model.d_model is {c.d_model}: "
            "set that to the same, or make others with `bigjax embeddings`."
        )
    if not vectors.table.std() > 0:
        raise UserError(f"task.embeddings={options.embeddings!r}: all its numbers are the same.")
    return lambda params, corpus: _with_vectors(params, vectors, options, corpus.tokenizer)


def _with_vectors(params, vectors: word_vectors.WordVectors, options: Config, tokenizer):
    """The parameters with the vectors of the pieces that have one, scaled as what was drawn."""
    table = params["generator"]["embed"]["embedding"]
    found = {
        i: vectors.row[name]
        for i, name in enumerate(word_vectors.piece_names(tokenizer))
        if name in vectors.row
    }
    if not found:
        raise UserError(
            f"task.embeddings={options.embeddings!r} has a vector of no piece of the "
            "tokenizer. Is it of another language, or with other words?"
        )
    new = vectors.table[list(found.values())]
    new = jnp.asarray(new * (table.std() / new.std()), table.dtype)
    table = jax.device_put(table.at[jnp.array(list(found))].set(new), table.sharding)
    generator = {**params["generator"], "embed": {"embedding": table}}
    return {**params, "generator": generator}
