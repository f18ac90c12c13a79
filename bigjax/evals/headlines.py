"""Headlines that a model writes, measured against the real ones and against two baselines."""

import functools

import jax
import numpy as np

from bigjax import json_text
from bigjax.errors import UserError
from bigjax.evals import _text_metrics
from bigjax.evals.context import Context
from bigjax.infer.generate import until
from bigjax.infer.headline import beam_search, readable
from bigjax.parallel import sharding
from bigjax.tasks._adversarial import judge

WIDTH = 4  # of the beam search
_START = 200  # characters of an article in the file


def build(name: str, entry, context: Context):
    """evals.NAME = evaluation('headlines', split=, batches=): batches=0 takes the whole split.

    Gives the metrics of _text_metrics.measure, and as `discriminator` the mean probability of
    being real. Writes to WORKDIR/evals/NAME headlines.jsonl and report.json, which also has the
    numbers of the lead sentence (lead_rouge1, ...) and of the sentence with most hot words.
    """
    config, p = context.config, context.task.players
    if config.task.name != "headline":
        raise UserError(
            f"evals.{name}.kind='headlines' is for task.name='headline'; task.name is "
            f"{config.task.name!r}."
        )
    corpus, batch_size = context.corpus, config.train.batch_size
    data = corpus.split(entry.split, batch_size=batch_size, shuffle=False)
    n = min(entry.batches or data.n_batches, data.n_batches)
    rows = sharding.local_rows(context.mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(context.mesh))
    def written(params, batch):
        g = params["generator"]
        found, _ = beam_search(p, g, p.context(g, batch, None), batch_size, WIDTH)
        logits, _ = judge(p, params["discriminator"], batch, found[:, 0])
        return found[:, 0], jax.nn.sigmoid(logits[:, 1] - logits[:, 0])

    @functools.cache
    def baselines() -> dict[str, float]:
        given = [
            corpus.rows(entry.split)[i]
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
                given.append(corpus.rows(entry.split)[batch["example"][b]])
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

    evaluate.metrics = (*_text_metrics.METRICS, "discriminator")
    return evaluate


def _measure(headlines: list[str], rows: list[dict], corpus) -> dict[str, float]:
    """Texts against the real headlines as the tokenizer writes those: a model cannot do better
    than without case, and with a space between words and punctuation."""
    references = [_as_written(row["headline"], corpus) for row in rows]
    return _text_metrics.measure(
        headlines, references, [row["article"] for row in rows], corpus.hot_words
    )


def _baselines(rows: list[dict], corpus) -> dict[str, float]:
    found = {}
    for name, choose in (
        ("lead", _text_metrics.lead_sentence),
        ("hot", lambda text: _text_metrics.hot_word_headline(text, corpus.hot_words)),
    ):
        texts = [_as_written(choose(row["article"]), corpus) for row in rows]
        found.update({f"{name}_{k}": v for k, v in _measure(texts, rows, corpus).items()})
    return found


def _as_written(text: str, corpus) -> str:
    return corpus.tokenizer.decode(corpus.tokenizer.encode(text))
