"""Generates a target for each source and compares it with the true one."""

import dataclasses

import jax

from bigjax import json_text, modules
from bigjax.bounds import FINITE, at_least
from bigjax.errors import UserError
from bigjax.evals import Context, text_metrics
from bigjax.infer import batch as batch_lib
from bigjax.infer import beam_search
from bigjax.layers import params as params_lib
from bigjax.parallel import sharding

_SHOWN = 300  # characters of a text in worst.txt


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    examples: int = 0  # of the split, evenly spaced; 0 = all
    metrics: tuple[str, ...] = ("bleu", "chrf")  # also rouge, exact_match, wer, cer, per
    normalize: bool = False  # compare in lower case, without punctuation
    beam: int = 1  # 1 is greedy decoding
    length_penalty: float = 1.0  # above 0: longer texts
    coverage_penalty: float = 0.0  # above 0: texts that attend to all of the source
    max_new_tokens: int = 0  # 0 = as long as the model's targets may be
    worst: int = 20  # examples in worst.txt

    RANGES = {
        "examples": at_least(0),
        "beam": at_least(1),
        "length_penalty": FINITE,
        "coverage_penalty": at_least(0),
        "max_new_tokens": at_least(0),
        "worst": at_least(0),
    }

    def __post_init__(self):
        text_metrics.check_names(self.metrics, "evals.NAME.metrics")


def build(name: str, options: Config, context: Context):
    """The evaluator.

    Metrics: those of text_metrics.compare. Writes generations.jsonl, report.json and worst.txt, the
    examples with the highest character error rate, to WORKDIR/evals/NAME. With rouge the report
    also has the metrics of the source's first sentence (lead_rouge1, ...).
    """
    config, corpus = context.config, context.corpus
    family = modules.of(config, "model")
    if not hasattr(family, "decoder") or not hasattr(corpus, "inputs"):
        raise UserError(
            f"evals.{name}.kind='generation' needs a model that answers a source, and data with "
            "sources and targets, such as model.name='t5' and data.name='text_to_text'; model.name "
            f"is {config.model.name!r} and data.name {config.data.name!r}."
        )
    decoder = family.decoder(context.task.model_config)
    search = batch_lib.Search(options.beam, 1, options.length_penalty, options.coverage_penalty)
    batch_lib.check(decoder, search)
    most = min(config.data.get("target_len", decoder.max_len), decoder.max_len)
    n = min(options.max_new_tokens or most, decoder.max_len)
    inputs, rows = corpus.inputs(options.split), corpus.rows(options.split)
    chosen = range(0, len(rows), max(1, len(rows) // (options.examples or len(rows))))
    chosen = [*chosen][: options.examples or None]
    inputs, rows = [inputs[i] for i in chosen], [rows[i] for i in chosen]
    references = [row["target"] for row in rows]
    tokenizer = corpus.tokenizer
    on_all = sharding.replicated(context.mesh)
    statics = ("decoder", "width", "size", "slots", "coverage_penalty")
    run = jax.jit(beam_search.beam_search, static_argnames=statics, out_shardings=(on_all, on_all))
    unrolled = jax.jit(params_lib.unrolled)
    ends = dict(end_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, run=run)

    def generate(variables) -> tuple[list[str], list[float]]:
        texts, scores = [""] * len(rows), [0.0] * len(rows)
        size = config.train.batch_size
        batches = batch_lib.search_all(decoder, variables, inputs, size, n, search, **ends)
        for indices, found in batches:
            for i, (best, *_) in zip(indices, found):
                texts[i], scores[i] = tokenizer.decode(best.ids), best.score
        return texts, scores

    def evaluate(params, extras, step: int) -> dict[str, float]:
        texts, scores = generate(unrolled({"params": params, **extras}))
        form = text_metrics.normalised if options.normalize else lambda text: text
        pair = [*map(form, texts)], [*map(form, references)]
        numbers = text_metrics.compare(options.metrics, *pair)
        if jax.process_index() == 0:
            baseline = _lead(options.metrics, rows, pair[1]) if "rouge" in options.metrics else {}
            errors = [text_metrics.compare(["cer"], [c], [r])["cer"] for c, r in zip(*pair)]

            def write(folder):
                _write(folder, step, rows, texts, scores, errors)
                _write_worst(folder, step, rows, texts, errors, options.worst)
                report = {"step": step, "examples": len(rows), **numbers, **baseline}
                (folder / "report.json").write_text(json_text.dumps(report, indent=1) + "\n")

            where = context.write(name, write)
            line = "".join(f", {k} {v:.4f}" for k, v in (numbers | baseline).items())
            context.report(f"{name}, step {step}: {len(rows):,} texts{line}{where}")
        return numbers

    evaluate.metrics = text_metrics.compared(options.metrics)
    return evaluate


def _lead(metrics, rows, references) -> dict[str, float]:
    """{lead_NAME: value} of the first sentence of each source; {} if the rows have no text."""
    if not all("source" in row for row in rows):
        return {}
    leads = [text_metrics.lead_sentence(row["source"]) for row in rows]
    return {f"lead_{k}": v for k, v in text_metrics.compare(["rouge"], leads, references).items()}


def _write(folder, step, rows, texts, scores, errors) -> None:
    with (folder / "generations.jsonl").open("w") as f:
        for row, text, score, error in zip(rows, texts, scores, errors):
            own = {k: v for k, v in row.items() if k not in ("row", "where") and v is not None}
            line = {**own, "generated": text, "score": score, "cer": error, "step": step}
            f.write(json_text.dumps(line, ensure_ascii=False) + "\n")


def _write_worst(folder, step, rows, texts, errors, n: int) -> None:
    order = sorted(range(len(rows)), key=lambda i: -errors[i])[:n]
    lines = [f"step {step}: the {len(order)} examples with the most character errors", ""]
    for i in order:
        row = rows[i]
        lines.append(f"{row['where']}: character error rate {errors[i]:.3f}")
        for key in ("source", "file"):
            if row.get(key):
                lines.append(f"  {key}:    {_short(row[key])}")
        lines += [f"  target:    {_short(row['target'])}", f"  generated: {_short(texts[i])}", ""]
    (folder / "worst.txt").write_bytes("\n".join(lines).encode())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
