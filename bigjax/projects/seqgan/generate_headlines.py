"""Headlines for articles: beam search or samples, ranked by the discriminator and its clicks."""

import dataclasses
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
from bigjax.infer.sampling import sample
from bigjax.projects.seqgan import augmented, headline_data
from bigjax.projects.seqgan import headline as headline_task
from bigjax.projects.seqgan.gan import GAN, decoder, discriminate, until, whole, write
from bigjax.projects.seqgan.generation_options import Options
from bigjax.projects.seqgan.headline_rows import read_headlines
from bigjax.projects.seqgan.hot_words import read_hot_words

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
AT_ONCE = 32  # articles
SAMPLES = 4  # drawn for each headline that is wanted: some are equal, and the best are chosen
_WIDE = "[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"  # written without spaces


class Headline(NamedTuple):
    """real: the probability of it that the discriminator gives. clicks: the quantile of clicks
    that it expects, None where it expects nothing."""

    text: str
    real: float
    clicks: float | None


# --- Decoding ---------------------------------------------------------------------------------


def search(gan: GAN, params, context, batch: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The `width` likeliest texts of each row by the mean log-probability of a token, see
    infer.beam_search. params: the generator's."""
    return beam_search(
        decoder(gan),
        whole(params),
        context,
        jnp.full(batch, gan.start_id, jnp.int32),
        width=width,
        n=gan.length,
        end_id=gan.end_id,
        pad_id=gan.pad_id,
        slots=gan.length,
    )


def draw(
    gan: GAN,
    params,
    context,
    rng: jax.Array,
    batch: int,
    number: int,
    temperature: float,
    top_p: float,
) -> jax.Array:
    """`number` samples of each row, int32 [batch, number, T]; see sampling.sample."""
    context = jax.tree_util.tree_map(lambda x: jnp.repeat(x, number, axis=0), context)

    def choose(logits, rng):
        keys = jax.random.split(rng, len(logits))
        return sample(logits, keys, temperature=temperature, top_p=top_p)

    return write(gan, params, context, rng, batch * number, choose).reshape(batch, number, -1)


class Writer:
    """Writes headlines with one model and one set of parameters."""

    def __init__(self, gan: GAN, params: Any, tokenizer, options: Options) -> None:
        """params: of generator and discriminator."""
        self.gan, self.params, self.options = gan, params, options
        self.tokenizer = tokenizer
        self._found = jax.jit(self._candidates)

    def __call__(self, given: dict[str, np.ndarray]) -> list[list[Headline]]:
        """Different headlines of each row of `given` (of encode_articles, and clicks), the best
        first; at most options.number, none of them empty."""
        n, found = len(given["source"]), []
        size = min(n, AT_ONCE)  # one shape: the last rows are filled up
        for i in range(0, n, size):
            part = {k: np.resize(x[i : i + size], (size, *x.shape[1:])) for k, x in given.items()}
            key = jax.random.fold_in(jax.random.key(self.options.seed), i)
            rows = zip(*jax.device_get(self._found(self.params, part, key)))
            found += [self._ranked(*row) for row, _ in zip(rows, range(n - i))]
        return found

    def _candidates(self, params, given, rng):
        """Tokens [B, N, T], and [B, N] the probabilities of being real and quantiles of clicks."""
        p, o, B = self.gan, self.options, len(given["source"])
        context = p.context(params["generator"], given, None)
        if o.temperature:
            tokens = draw(
                p, params["generator"], context, rng, B, SAMPLES * o.number, o.temperature, o.top_p
            )
        else:
            tokens, _ = search(p, params["generator"], context, B, o.beam)
        N = tokens.shape[1]
        given = {k: jnp.repeat(x, N, axis=0) for k, x in given.items()}
        logits, clicks = discriminate(p, params["discriminator"], given, tokens.reshape(B * N, -1))
        real = jax.nn.sigmoid(logits[:, 1] - logits[:, 0]).reshape(B, N)
        clicks = (
            jnp.full((B, N), jnp.nan) if clicks is None else (jax.nn.sigmoid(clicks).reshape(B, N))
        )
        return tokens, real, clicks

    def _ranked(self, tokens_NT, real_N, clicks_N) -> list[Headline]:
        found = {}  # in the order of the search: of equals the likelier stays first
        for tokens, real, clicks in zip(tokens_NT, real_N.tolist(), clicks_N.tolist()):
            text = readable(self.tokenizer.decode(until(tokens.tolist(), self.gan.end_id)))
            if text and text not in found:
                found[text] = Headline(text, real, None if np.isnan(clicks) else clicks)
        o = self.options
        worth = lambda h: o.real_weight * h.real + o.click_weight * (h.clicks or 0.0)
        return sorted(found.values(), key=worth, reverse=True)[: o.number]


def readable(text: str) -> str:
    """A text of WordPiece without the spaces that people leave out: in Chinese, before and after
    punctuation, and inside words with hyphens and the like."""
    text = re.sub(rf"(?<={_WIDE}) (?={_WIDE})", "", text)
    text = re.sub(r"(?<=\w) (['’_/-]) (?=\w)", r"\1", text)
    return re.sub(r" (?=[.,:;!?)\]}%])|(?<=[(\[{]) ", "", text)


# --- The command ------------------------------------------------------------------------------


def check(f: flags.FlagValues, config) -> tuple[Options, list[dict]]:
    """The options and the articles that the flags name. config: the run's.

    Raises UserError for a run of another task, and for articles that are missing or empty.
    """
    if modules.of(config, "task") is not headline_task:
        raise UserError(
            f"{f.workdir[0]!r} was trained with task.name={config.task.name!r}; "
            "headlines are of the task seqgan.headline."
        )
    options = Options(**{field.name: f[field.name].value for field in dataclasses.fields(Options)})
    c = modules.options(config, "model")
    for names, useless, why in (
        (
            ("clicks", "click_weight"),
            not c.click_buckets,
            "this run knows no clicks (model.click_buckets=0)",
        ),
        (
            ("hot_words",),
            not c.hot_per_example,
            "this run knows no hot words (model.hot_per_example=0)",
        ),
        (
            ("previous",),
            not config.task.n_history,
            "this run knows no previous headlines (task.n_history=0)",
        ),
        (("top_p", "seed"), not f.temperature, "it is of samples, with --temperature above 0"),
        (("beam",), f.temperature, "samples (--temperature) are not searched for"),
    ):
        for name in names:
            if useless and f[name].present:
                raise UserError(f"--{name} would change nothing: {why}. Leave it out.")
    is_table = extension(f.article) in TABLES
    if is_table and not f.output:
        raise UserError("--output=FILE is missing: where to write the rows with their headlines.")
    if f.output and not is_table:
        raise UserError(
            "--output is for articles in a table: --article has to end in "
            f"{', '.join(TABLES)}. What is written for one article is printed."
        )
    if f.output:
        predict.check_output(f.output, f.article)
    rows = (
        read_headlines(f.article, config.data, with_headlines=False)
        if is_table
        else [{"article": _text(f.article, bool(config.data.columns.article)), "where": f.article}]
    )
    return options, [{**row, "history": f.previous} for row in rows]


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
            f"--article={path} cannot be read: there is no such file (looked from {os.getcwd()!r})."
        )
    text = read_text(path, "an article, a text file")
    if not text.strip():
        raise UserError(f"--article={path} is empty. Put the text of an article into it, in UTF-8.")
    return text


def command(f: flags.FlagValues, options: Options, rows: list[dict], loaded, folder) -> None:
    """Prints headlines of one article, or writes the best one of each row to --output.

    loaded: train.load.Loaded; folder: the run's.
    """
    config, c = loaded.config, loaded.task.model_config
    tokenizer = data.load_tokenizer(folder / "tokenizer")
    headline_task.check_tokenizer(tokenizer, c)
    kept = folder / augmented.HOT_WORDS
    hot_file = f.hot_words or (kept if kept.exists() else "")
    task_options = loaded.task.gan.options
    given, cut = headline_data.encode_articles(
        rows,
        headline_task.headline_options(config, c, task_options),
        tokenizer,
        read_hot_words(hot_file) if hot_file else (),
        truncate=config.data.truncate,
    )
    for line in cut:
        print(line)
    bucket = {"": 0, "low": 1, "high": c.click_buckets}[options.clicks]
    given["clicks"] = np.full(len(rows), bucket, np.int32)
    found = Writer(loaded.task.gan, loaded.params, tokenizer, options)(given)
    if f.output:
        best = [row[0] if row else Headline("", 0.0, None) for row in found]
        records = [
            {
                "headline": h.text,
                "real": h.real,
                **({} if h.clicks is None else {"expected_clicks": h.clicks}),
            }
            for h in best
        ]
        predict.write(f.output, rows, records)
        print(f"Wrote {f.output}: {len(rows):,} rows, step {loaded.step} of {f.workdir[0]}")
        return
    for h in found[0]:
        print(
            f"real {h.real:.2f}"
            + ("" if h.clicks is None else f"  clicks {h.clicks:.2f}")
            + f"  {h.text}"
        )
    if len(found[0]) < options.number:
        print(f"There were only {len(found[0])} different ones. Raise --beam, or --temperature.")
