"""Headlines that a model writes, measured against the real ones and against two baselines."""

import dataclasses
import functools

import jax
import numpy as np

from bigjax import json_text
from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.evals import Context, text_metrics
from bigjax.parallel import sharding
from bigjax.projects.seqgan import hot_word_metrics
from bigjax.projects.seqgan.gan import discriminate, until
from bigjax.projects.seqgan.generate_headlines import readable, search

WIDTH = 4  # of the beam search
_START = 200  # characters of an article in the file


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    batches: int = 0  # 0 = the whole split

    RANGES = {"batches": at_least(0)}


def build(name: str, options: Config, context: Context):
    """The evaluator.

    Gives the metrics of text_metrics.measure, hot_word_coverage, and as `discriminator` the mean
    probability of being real. Writes to WORKDIR/evals/NAME headlines.jsonl and report.json, which
    also has the numbers of the lead sentence (lead_rouge1, ...) and of the sentence with most hot
    words.
    """
    config, p = context.config, getattr(context.task, "gan", None)
    if p is None or p.clicks is None:
        raise UserError(
            f"evals.{name}.kind={config.evals[name].kind!r} is for "
            f"task.name='seqgan.headline'; task.name is {config.task.name!r}."
        )
    corpus, batch_size = context.corpus, config.train.batch_size
    data = corpus.split(options.split, batch_size=batch_size, shuffle=False)
    n = min(options.batches or data.n_batches, data.n_batches)
    rows = sharding.local_rows(context.mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(context.mesh))
    def written(params, batch):
        g = params["generator"]
        found, _ = search(p, g, p.context(g, batch, None), batch_size, WIDTH)
        logits, _ = discriminate(p, params["discriminator"], batch, found[:, 0])
        return found[:, 0], jax.nn.sigmoid(logits[:, 1] - logits[:, 0])

    @functools.cache
    def baselines() -> dict[str, float]:
        given = [
            corpus.rows(options.split)[i]
            for step in range(n)
            for i in data.batch_at(step)["example"]
            if i >= 0
        ]
        return _baselines(given, corpus)

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        headlines, real, given = [], [], []
        for i in range(n):
            batch = data.batch_at(i)
            # Nobody knows a headline's clicks before it is published.
            batch["clicks"] = np.zeros_like(batch["clicks"])
            tokens, probability = jax.device_get(
                written(
                    params,
                    sharding.put_batch(
                        context.mesh, {k: x[rows] for k, x in batch.items()}, rows, batch_size
                    ),
                )
            )
            for b in np.flatnonzero(batch["example"] >= 0):
                given.append(corpus.rows(options.split)[batch["example"][b]])
                headlines.append(corpus.tokenizer.decode(until(tokens[b].tolist(), p.end_id)))
                real.append(float(probability[b]))
        numbers = {**_measure(headlines, given, corpus), "discriminator": float(np.mean(real))}
        if jax.process_index() == 0:
            lines = [
                {
                    "article": row["article"][:_START],
                    "reference": row["headline"],
                    "headline": readable(text),
                }
                for row, text in zip(given, headlines)
            ]

            def write(folder):
                text = "".join(json_text.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (folder / "headlines.jsonl").write_bytes(text.encode())
                (folder / "report.json").write_text(
                    json_text.dumps({"step": step, **numbers, **baselines()}, indent=1) + "\n"
                )

            where = context.write(name, write)
            context.report(
                "\n".join(
                    [
                        f"{name}, step {step}:",
                        *(f"  {k:<18} {v:.4f}" for k, v in {**numbers, **baselines()}.items()),
                        *(
                            f"  {line['headline']!r} for {line['reference']!r}"
                            for line in lines[:5]
                        ),
                    ]
                )
                + where
            )
        return numbers

    evaluate.metrics = (*text_metrics.METRICS, "hot_word_coverage", "discriminator")
    return evaluate


def _measure(headlines: list[str], rows: list[dict], corpus) -> dict[str, float]:
    """Texts against the real headlines as the tokenizer writes those: a model cannot do better
    than without case, and with a space between words and punctuation."""
    references = [_as_written(row["headline"], corpus) for row in rows]
    articles = [row["article"] for row in rows]
    return {
        **text_metrics.measure(headlines, references, articles),
        "hot_word_coverage": hot_word_metrics.coverage(headlines, articles, corpus.hot_words),
    }


def _baselines(rows: list[dict], corpus) -> dict[str, float]:
    found = {}
    for name, choose in (
        ("lead", text_metrics.lead_sentence),
        ("hot", lambda text: hot_word_metrics.hot_word_headline(text, corpus.hot_words)),
    ):
        texts = [_as_written(choose(row["article"]), corpus) for row in rows]
        found.update({f"{name}_{k}": v for k, v in _measure(texts, rows, corpus).items()})
    return found


def _as_written(text: str, corpus) -> str:
    return corpus.tokenizer.decode(corpus.tokenizer.encode(text))
