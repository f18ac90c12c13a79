"""SeqGAN for headlines, conditioned on an article, earlier headlines, clicks and hot words.

SeqGAN (https://arxiv.org/abs/1609.05473) is unconditional; here the generator encodes the source
and attends to it, and the discriminator sees the source too. The discriminator also predicts how
often a headline is clicked, which may be part of the reward.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.bounds import FRACTION, at_least
from bigjax.data import word_vectors
from bigjax.data.store import SPLITS
from bigjax.data.tokenizers.wordpiece import SPECIALS
from bigjax.errors import UserError
from bigjax.projects.seqgan import headline_examples
from bigjax.projects.seqgan import model as seqgan
from bigjax.projects.seqgan.augmented import Corpus
from bigjax.projects.seqgan.gan import GAN, half_sum_of_squares
from bigjax.projects.seqgan.task import adversarial_task, check_batch_size
from bigjax.projects.seqgan.training_options import TrainingOptions
from bigjax.tasks import Task, check_vocabulary, data_module, family_for


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    n_history: int = 2  # earlier headlines per article, at most
    click_smoothing: float = 100.0  # impressions at the mean click rate added to those of each row
    hot_words: int = 200  # size of the dictionary of hot words; 0 = none
    hot_words_file: str = (
        ""  # one word per line, optionally with a tab and a weight; '' = from data
    )
    click_reward: float = 0.0  # weight of the predicted quantile of clicks in the reward
    augment: float = 0.0  # share of the words of an article that are changed; 0 = off
    augment_headlines: float = 0.0  # the same for the real headlines of the discriminator
    thesaurus: str = ""  # for augmentation: synonyms, one group per line; '' = `embeddings`, if any
    embeddings: str = ""  # a file of word vectors that initialise the generator's embedding

    MAY_CHANGE = (
        *TrainingOptions.MAY_CHANGE,
        *("n_history", "click_*", "hot_words*", "augment*", "thesaurus", "embeddings"),
    )
    PATHS = ("hot_words_file", "thesaurus", "embeddings")
    RANGES = {
        **TrainingOptions.RANGES,
        **dict.fromkeys(("n_history", "click_smoothing", "hot_words", "click_reward"), at_least(0)),
        **dict.fromkeys(("augment", "augment_headlines"), FRACTION),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.thesaurus and not (self.augment or self.augment_headlines):
            raise UserError(
                "task.thesaurus is used for augmentation only, which is off: set "
                "task.augment above 0, or task.thesaurus=''."
            )
        if self.click_reward and self.constant:
            raise UserError(
                "task.click_reward needs a discriminator, and task.reward='constant' "
                "has none: set task.click_reward=0, or another reward."
            )
        if self.hot_words_file and not self.hot_words:
            raise UserError(
                "task.hot_words_file is not read with task.hot_words=0: set task.hot_words to "
                "the number of words to use."
            )


def build(config, options: Config) -> Task:
    """The task. Batches: see headline_data.HeadlineBatches; in training see round_batches.py."""
    check_batch_size(config)
    family, c = family_for(
        config,
        "an encoder with a generator (model.name='seqgan.headline_model')",
        lambda family: hasattr(getattr(family, "Generator", None), "encode"),
    )
    if options.click_reward and not c.click_buckets:
        raise UserError(
            "task.click_reward needs clicks, but model.click_buckets is 0: raise it, or set "
            "task.click_reward=0."
        )
    headline_options(config, c, options)
    source = data_module(config, "load_headlines", "seqgan.headline_data")

    def load_data(log=print, tokenizer=None, splits=None):
        headlines = source.load_headlines(
            config.data, headline_options(config, c, options), log, tokenizer, splits or SPLITS
        )
        check_tokenizer(headlines.tokenizer, c)
        return Corpus(headlines, options)

    context_row = family.context_row(c)
    return adversarial_task(
        c,
        conditional(family, c, options, config.data.seq_len),
        {"generator": family.Generator(c), "discriminator": family.Discriminator(c)},
        _examples(context_row, config.data.seq_len),
        _batch_row(context_row),
        load_data,
        prepare=lambda: _prepare(options, c),
    )


def headline_options(config, c, options: Config) -> headline_examples.HeadlineOptions:
    """How to read the data, given the sizes of the model and data.seq_len tokens per headline."""
    return headline_examples.HeadlineOptions(
        c.article_len,
        config.data.seq_len,
        options.n_history,
        c.click_buckets,
        options.click_smoothing,
        options.hot_words,
        options.hot_words_file,
        c.hot_per_example,
    )


def conditional(family, c, options: Config, length: int) -> GAN:
    """The GAN of a family such as seqgan.headline_model, for headlines of `length` tokens."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    pad, _, start, end, _ = c.special_ids

    def clicks(context):
        bucket = context["clicks"]
        return jnp.maximum(bucket - 0.5, 0) / c.click_buckets, (bucket > 0).astype(jnp.float32)

    return GAN(
        options,
        length,
        start_id=start,
        end_id=end,
        pad_id=pad,
        decoder=family.generator_decoder(c),
        context=lambda batch: {k: batch[k] for k in family.context_row(c)},
        logits=lambda params, context, inputs, rng: generator.apply(
            {"params": params}, inputs, context, rng
        ),
        loss=lambda params, context, inputs, targets, weights, rng: generator.apply(
            {"params": params}, inputs, targets, weights, context, rng, method="loss"
        ),
        discriminator=lambda params, context, tokens, mask, rng, shared: discriminator.apply(
            {"params": params}, tokens, mask, context, rng, shared
        ),
        penalty=lambda params: half_sum_of_squares(
            [params["head"], seqgan.last_layer(params["text"])]
        ),
        clicks=clicks,
        click_reward=options.click_reward,
    )


def check_tokenizer(tokenizer, c) -> None:
    """Raises UserError for a tokenizer with a larger vocabulary or other special ids than c."""
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


def _examples(context: dict, length: int) -> dict[str, tuple]:
    """The arguments of the networks, for one row."""
    text = jnp.zeros((1, length), jnp.int32)
    return {"generator": (text, context), "discriminator": (text, text > 0, context)}


def _batch_row(context: dict) -> dict:
    """The arrays of a batch besides the headlines, for one row."""
    real, ids = (np.zeros(1, dtype) for dtype in (np.float32, np.int32))
    return {**context, "click_rate": real, "click_weight": real, "example": ids}


def _prepare(options: Config, c):
    """Task.prepare: initialises the generator's embedding with task.embeddings, if any."""
    if not options.embeddings:
        return lambda params, corpus: params
    vectors = word_vectors.read(options.embeddings)
    if vectors.table.shape[1] != c.d_model:
        raise UserError(
            f"task.embeddings={options.embeddings!r} has vectors of "
            f"{vectors.table.shape[1]} numbers, but model.d_model is {c.d_model}: set them "
            "to the same width, or make other vectors with `bigjax embeddings`."
        )
    if not vectors.table.std() > 0:
        raise UserError(f"All numbers of task.embeddings={options.embeddings!r} are the same.")
    return lambda params, corpus: _with_vectors(params, vectors, options, corpus.tokenizer)


def _with_vectors(params, vectors: word_vectors.WordVectors, options: Config, tokenizer):
    """The parameters with the vectors of known pieces, scaled to the initial embedding."""
    table = params["generator"]["embed"]["embedding"]
    rows = {
        i: vectors.row[name]
        for i, name in enumerate(word_vectors.piece_names(tokenizer))
        if name in vectors.row
    }
    if not rows:
        raise UserError(
            f"task.embeddings={options.embeddings!r} has no vector for any piece of the tokenizer. "
            "Give vectors of the same language."
        )
    new = vectors.table[list(rows.values())]
    new = jnp.asarray(new * (table.std() / new.std()), table.dtype)
    table = jax.device_put(table.at[jnp.array(list(rows))].set(new), table.sharding)
    generator = {**params["generator"], "embed": {"embedding": table}}
    return {**params, "generator": generator}
