"""Writes headlines by beam search or sampling, ranked by the discriminator and predicted clicks."""

import dataclasses
import functools
import os
import re
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import data, modules
from bigjax.data.text_files import extension, read_text
from bigjax.errors import UserError
from bigjax.infer import predict
from bigjax.infer.beam_search import beam_search
from bigjax.infer.rollout import gather
from bigjax.infer.sampling import sample
from bigjax.plural import plural
from bigjax.projects.seqgan import augmented, headline_examples
from bigjax.projects.seqgan import headline as headline_task
from bigjax.projects.seqgan.gan import GAN, before_end, discriminate, repeat_rows, sample_texts
from bigjax.projects.seqgan.generation_options import GenerationOptions
from bigjax.projects.seqgan.headline_rows import read_headlines
from bigjax.projects.seqgan.hot_words import read_hot_words

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
BATCH_SIZE = 32  # articles
SAMPLES = 4  # per headline: some are equal, and the best are chosen
_CJK = "[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"  # scripts without spaces


class Headline(NamedTuple):
    """real: the probability of being real according to the discriminator. clicks: the predicted
    quantile of clicks, None if the model predicts none."""

    text: str
    real: float
    clicks: float | None


# --- Decoding ---------------------------------------------------------------------------------


def search(gan: GAN, params, context, width: int) -> tuple[jax.Array, jax.Array]:
    """The `width` texts of each row with the best mean log-probability per token, and that, as
    beam_search. params: the generator's."""
    rows = len(jax.tree_util.tree_leaves(context)[0])
    return beam_search(
        gan.decoder,
        {"params": gather(params)},
        context,
        jnp.full(rows, gan.start_id, jnp.int32),
        width=width,
        size=gan.length,
        n=gan.length,
        end_id=gan.end_id,
        pad_id=gan.pad_id,
        slots=gan.length,
    )


def draw(
    gan: GAN, params, context, rng: jax.Array, number: int, temperature: float, top_p: float
) -> jax.Array:
    """`number` samples per row, int32 [B, number, T]; see sampling.sample."""

    def choose(logits, rng):
        keys = jax.random.split(rng, len(logits))
        return sample(logits, keys, temperature=temperature, top_p=top_p)

    texts = sample_texts(gan, params, context, rng, number=number, choose=choose)
    return texts.reshape(-1, number, gan.length)


class HeadlineGenerator:
    """Writes headlines with one model and one set of parameters."""

    def __init__(self, gan: GAN, params: Any, tokenizer, options: GenerationOptions) -> None:
        """params: of both networks."""
        self.gan, self.params, self.options = gan, params, options
        self.tokenizer = tokenizer
        self._candidates = jax.jit(functools.partial(_candidates, gan, options))

    def __call__(self, context: dict[str, np.ndarray]) -> list[list[Headline]]:
        """Different headlines for each row of the context (encode_articles and clicks), the best
        first; at most options.number, none of them empty."""
        n, headlines = len(context["source"]), []
        size = min(n, BATCH_SIZE)  # one shape: rows are repeated to fill the last batch
        for i in range(0, n, size):
            part = {k: np.resize(x[i : i + size], (size, *x.shape[1:])) for k, x in context.items()}
            key = jax.random.fold_in(jax.random.key(self.options.seed), i)
            rows = zip(*jax.device_get(self._candidates(self.params, part, key)))
            headlines += [self._ranked(*row) for row, _ in zip(rows, range(n - i))]
        return headlines

    def _ranked(self, tokens_NT, real_N, clicks_N) -> list[Headline]:
        headlines = {}  # by text, in the order of the search: the likelier comes first in a tie
        for tokens, real, clicks in zip(tokens_NT, real_N.tolist(), clicks_N.tolist()):
            text = readable(self.tokenizer.decode(before_end(tokens.tolist(), self.gan.end_id)))
            if text and text not in headlines:
                headlines[text] = Headline(text, real, None if np.isnan(clicks) else clicks)
        o = self.options
        score = lambda h: o.real_weight * h.real + o.click_weight * (h.clicks or 0.0)
        return sorted(headlines.values(), key=score, reverse=True)[: o.number]


def _candidates(gan: GAN, o: GenerationOptions, params, context, rng) -> tuple:
    """Tokens [B, N, T], and [B, N] the probability of being real and the quantile of clicks (NaN
    if the model predicts none)."""
    if o.temperature:
        n = SAMPLES * o.number
        tokens = draw(gan, params["generator"], context, rng, n, o.temperature, o.top_p)
    else:
        tokens, _ = search(gan, params["generator"], context, o.beam)
    B, N, T = tokens.shape
    context = repeat_rows(context, N)
    logits, clicks = discriminate(gan, params["discriminator"], context, tokens.reshape(B * N, T))
    real = jax.nn.sigmoid(logits[:, 1] - logits[:, 0]).reshape(B, N)
    if clicks is None:
        return tokens, real, jnp.full((B, N), jnp.nan)
    return tokens, real, jax.nn.sigmoid(clicks).reshape(B, N)


def readable(text: str) -> str:
    """A decoded WordPiece text without the spaces that writers omit: between Chinese characters,
    around punctuation, and inside words with hyphens or apostrophes."""
    text = re.sub(rf"(?<={_CJK}) (?={_CJK})", "", text)
    text = re.sub(r"(?<=\w) (['’_/-]) (?=\w)", r"\1", text)
    return re.sub(r" (?=[.,:;!?)\]}%])|(?<=[(\[{]) ", "", text)


# --- The command ------------------------------------------------------------------------------


def check(f: flags.FlagValues, config) -> tuple[GenerationOptions, list[dict]]:
    """The options and the articles of the flags. config: the run's.

    Raises UserError for a run of another task, and for articles that are missing or empty.
    """
    if modules.of(config, "task") is not headline_task:
        raise UserError(
            f"{f.workdir[0]!r} was trained with task.name={config.task.name!r}; `bigjax headline` "
            "needs a run with task.name='seqgan.headline'."
        )
    names = [field.name for field in dataclasses.fields(GenerationOptions)]
    options = GenerationOptions(**{name: f[name].value for name in names})
    _check_unused(f, config)
    is_table = extension(f.article) in TABLES
    if is_table and not f.output:
        raise UserError("--output=FILE is missing: the file for the rows with their headlines.")
    if f.output and not is_table:
        raise UserError(
            "--output needs articles in a table: --article must end in "
            f"{', '.join(TABLES)}. The headlines of one article are printed."
        )
    if f.output:
        predict.check_output(f.output, f.article)
    rows = (
        read_headlines(f.article, config.data, with_headlines=False)
        if is_table
        else [{"article": _text(f.article, bool(config.data.columns.article)), "where": f.article}]
    )
    return options, [{**row, "history": f.previous} for row in rows]


def _check_unused(f: flags.FlagValues, config) -> None:
    """Raises UserError for flags without an effect on this run."""
    c = modules.options(config, "model")
    for names, unused, why in (
        (
            ("clicks", "click_weight"),
            not c.click_buckets,
            "this run was trained without clicks (model.click_buckets=0)",
        ),
        (
            ("hot_words",),
            not c.hot_per_example,
            "this run was trained without hot words (model.hot_per_example=0)",
        ),
        (
            ("previous",),
            not config.task.n_history,
            "this run was trained without previous headlines (task.n_history=0)",
        ),
        (("top_p", "seed"), not f.temperature, "it is for samples, with --temperature above 0"),
        (("beam",), f.temperature, "samples (--temperature) do not use beam search"),
    ):
        for name in names:
            if unused and f[name].present:
                raise UserError(f"--{name} would change nothing: {why}. Leave it out.")


def _text(path: str, needed: bool) -> str:
    """The article of a text file; '' for a model that was trained without articles."""
    if not path and not needed:
        return ""
    if extension(path) != ".txt":
        raise UserError(
            f"--article is {path!r}; it must be a file: .txt for one article, or rows "
            f"in {', '.join(TABLES)}."
        )
    if "://" not in path and not os.path.exists(os.path.expanduser(path)):
        raise UserError(
            f"--article={path} cannot be read: there is no such file (relative to {os.getcwd()!r})."
        )
    text = read_text(path, "an article, a text file")
    if not text.strip():
        raise UserError(f"--article={path} is empty; it must be the text of an article in UTF-8.")
    return text


def command(
    f: flags.FlagValues, options: GenerationOptions, rows: list[dict], loaded, folder
) -> None:
    """Prints the headlines of one article, or writes the best one for each row to --output.

    loaded: train.load.Loaded; folder: the run's.
    """
    tokenizer = data.load_tokenizer(folder / "tokenizer", loaded.config.python_path)
    context = _context(f, options, rows, tokenizer, loaded, folder)
    generate = HeadlineGenerator(loaded.task.gan, loaded.params, tokenizer, options)
    headlines = generate(context)
    if f.output:
        best = [row[0] if row else Headline("", 0.0, None) for row in headlines]
        records = [
            {
                "headline": h.text,
                "real": h.real,
                **({} if h.clicks is None else {"expected_clicks": h.clicks}),
            }
            for h in best
        ]
        predict.write(f.output, rows, records)
        n = f"{len(rows):,} {plural(len(rows), 'row')}"
        print(f"Wrote {f.output}: {n}, step {loaded.step} of {f.workdir[0]}")
        return
    for h in headlines[0]:
        clicks = "" if h.clicks is None else f"  clicks {h.clicks:.2f}"
        print(f"real {h.real:.2f}{clicks}  {h.text}")
    if len(headlines[0]) < options.number:
        print(f"Only {len(headlines[0])} headlines are different. Raise --beam or --temperature.")


def _context(f, options: GenerationOptions, rows, tokenizer, loaded, folder) -> dict:
    """The generator's context of each row."""
    config, c = loaded.config, loaded.task.model_config
    headline_task.check_tokenizer(tokenizer, c)
    of_run = folder / augmented.HOT_WORDS
    hot_file = f.hot_words or (of_run if of_run.exists() else "")
    context, truncated = headline_examples.encode_articles(
        rows,
        headline_task.headline_options(config, c, loaded.task.gan.options),
        tokenizer,
        read_hot_words(hot_file) if hot_file else (),
        truncate=config.data.truncate,
    )
    for line in truncated:
        print(line)
    bucket = {"": 0, "low": 1, "high": c.click_buckets}[options.clicks]
    return {**context, "clicks": np.full(len(rows), bucket, np.int32)}
