"""Compares generated headlines with the real ones and with two baselines."""

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
from bigjax.projects.seqgan.gan import before_end, discriminate
from bigjax.projects.seqgan.generate_headlines import readable, search

BEAM_WIDTH = 4
_EXCERPT = 200  # characters of an article in headlines.jsonl


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    batches: int = 0  # 0 = the whole split

    RANGES = {"batches": at_least(0)}


def build(name: str, options: Config, context: Context):
    """The evaluator.

    Metrics: those of text_metrics.measure, hot_word_coverage, and `discriminator`, the mean
    probability of being real. Writes headlines.jsonl and report.json to WORKDIR/evals/NAME; the
    report also has the metrics of the lead sentence (lead_rouge1, ...) and of the sentence with the
    most hot words (hot_rouge1, ...).
    """
    config, gan = context.config, getattr(context.task, "gan", None)
    if gan is None or gan.clicks is None:
        raise UserError(
            f"evals.{name}.kind={config.evals[name].kind!r} needs "
            f"task.name='seqgan.headline'; task.name is {config.task.name!r}."
        )
    corpus, batch_size = context.corpus, config.train.batch_size
    data = corpus.split(options.split, batch_size=batch_size, shuffle=False)
    n = min(options.batches or data.n_batches, data.n_batches)
    rows = sharding.local_rows(context.mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(context.mesh))
    def write_best(params, batch):
        condition = gan.context(batch)
        texts, _ = search(gan, params["generator"], condition, BEAM_WIDTH)
        logits, _ = discriminate(gan, params["discriminator"], condition, texts[:, 0])
        return texts[:, 0], jax.nn.sigmoid(logits[:, 1] - logits[:, 0])

    @functools.cache
    def baselines() -> dict[str, float]:
        examples = [
            corpus.rows(options.split)[i]
            for step in range(n)
            for i in data.batch_at(step)["example"]
            if i >= 0
        ]
        return _baselines(examples, corpus)

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        headlines, real, examples = [], [], []
        for i in range(n):
            batch = data.batch_at(i)
            # The clicks of a headline are not known before it is published.
            batch["clicks"] = np.zeros_like(batch["clicks"])
            local = {k: x[rows] for k, x in batch.items()}
            on_device = sharding.put_batch(context.mesh, local, rows, batch_size)
            tokens, probability = jax.device_get(write_best(params, on_device))
            for b in np.flatnonzero(batch["example"] >= 0):
                examples.append(corpus.rows(options.split)[batch["example"][b]])
                ids = before_end(tokens[b].tolist(), gan.end_id)
                headlines.append(corpus.tokenizer.decode(ids))
                real.append(float(probability[b]))
        numbers = {**_measure(headlines, examples, corpus), "discriminator": float(np.mean(real))}
        if jax.process_index() == 0:
            _report(name, context, step, numbers, baselines(), examples, headlines)
        return numbers

    evaluate.metrics = (*text_metrics.METRICS, "hot_word_coverage", "discriminator")
    return evaluate


def _report(
    name: str,
    context: Context,
    step: int,
    numbers: dict[str, float],
    baselines: dict[str, float],
    examples: list[dict],
    headlines: list[str],
) -> None:
    """Writes headlines.jsonl and report.json, and reports the numbers with a few headlines."""
    lines = [
        {
            "article": row["article"][:_EXCERPT],
            "reference": row["headline"],
            "headline": readable(text),
        }
        for row, text in zip(examples, headlines)
    ]

    def write(folder):
        text = "".join(json_text.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "headlines.jsonl").write_bytes(text.encode())
        report = {"step": step, **numbers, **baselines}
        (folder / "report.json").write_text(json_text.dumps(report, indent=1) + "\n")

    written_to = context.write(name, write)
    table = [f"  {k:<18} {v:.4f}" for k, v in {**numbers, **baselines}.items()]
    shown = [f"  {line['headline']!r} for {line['reference']!r}" for line in lines[:5]]
    context.report("\n".join([f"{name}, step {step}:", *table, *shown]) + written_to)


def _measure(headlines: list[str], rows: list[dict], corpus) -> dict[str, float]:
    """The metrics of texts against the real headlines, both as the tokenizer decodes them: without
    case, and with spaces around punctuation."""
    references = [_decoded(row["headline"], corpus) for row in rows]
    articles = [row["article"] for row in rows]
    return {
        **text_metrics.measure(headlines, references, articles),
        "hot_word_coverage": hot_word_metrics.coverage(headlines, articles, corpus.hot_words),
    }


def _baselines(rows: list[dict], corpus) -> dict[str, float]:
    metrics = {}
    for name, choose in (
        ("lead", text_metrics.lead_sentence),
        ("hot", lambda text: hot_word_metrics.hot_word_headline(text, corpus.hot_words)),
    ):
        texts = [_decoded(choose(row["article"]), corpus) for row in rows]
        metrics.update({f"{name}_{k}": v for k, v in _measure(texts, rows, corpus).items()})
    return metrics


def _decoded(text: str, corpus) -> str:
    return corpus.tokenizer.decode(corpus.tokenizer.encode(text))
