"""Generates a target for each source and compares it with the true one."""

import dataclasses
from typing import Any, NamedTuple

import jax

from bigjax import json_text, modules
from bigjax.bounds import FINITE, at_least
from bigjax.errors import UserError
from bigjax.evals import Context, evenly_spaced, text_metrics
from bigjax.infer import batch as batch_lib
from bigjax.infer import beam_search
from bigjax.infer.generate import taken_by
from bigjax.layers import params as params_lib
from bigjax.parallel import sharding
from bigjax.plural import plural

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
    wrong texts with the highest character error rates, to WORKDIR/evals/NAME. With rouge the report
    also has the metrics of the source's first sentence (lead_rouge1, ...).
    """
    config, corpus = context.config, context.corpus
    family = modules.of(config, "model")
    if not hasattr(family, "decoder") or not hasattr(corpus, "inputs"):
        raise UserError(
            f"evals.{name}.kind='generation' needs a model that generates, and data with sources "
            "and targets, such as model.name='t5' and data.name='text_to_text', or model.name="
            f"'gpt' and data.name='conversations'; model.name is {config.model.name!r} and "
            f"data.name {config.data.name!r}."
        )
    task = context.task
    decoder = task.decoder(family.decoder(task.model_config))
    search = batch_lib.Search(options.beam, 1, options.length_penalty, options.coverage_penalty)
    batch_lib.check(decoder, search)
    most = config.data.get("target_len", config.data.seq_len)
    # What is before each text of a corpus, such as the tokens of a language, is given, not written.
    prefix = getattr(corpus, "prefix", ())
    n = min(options.max_new_tokens or most - len(prefix), decoder.max_len - len(prefix))
    started = lambda x: (x, [context.task.model_config.start_id, *prefix]) if prefix else x
    inputs, rows = corpus.inputs(options.split), corpus.rows(options.split)
    targets = corpus.references(options.split)
    chosen = evenly_spaced(len(rows), options.examples or len(rows))
    # Recordings are read when they are needed, and are as long as each other for the model.
    lengths = [len(inputs[i]) if isinstance(inputs, list) else 0 for i in chosen]
    batches = batch_lib.by_length(lengths, config.train.batch_size)
    tokenizer = corpus.tokenizer
    if lost := _lost(tokenizer, [targets[i] for i in chosen]):
        context.log(
            f"evals.{name}: the tokenizer cannot write {lost:,} of {len(chosen):,} targets as they "
            "are, such as their line ends or unknown characters; they always count as wrong."
        )
    on_all = sharding.replicated(context.mesh)
    run = jax.jit(
        beam_search.beam_search,
        static_argnames=beam_search.STATIC,
        out_shardings=(on_all, on_all),
    )
    unrolled = jax.jit(params_lib.unrolled)
    end_id = getattr(corpus, "end_id", tokenizer.eos_id)  # of an answer in a conversation
    ends = dict(end_id=end_id, pad_id=tokenizer.pad_id, run=run)

    def generate(variables) -> dict[int, batch_lib.Text]:
        """{example: its text} of those that can be read."""
        texts = {}
        for batch in batches:
            read = {i: inputs[i] for i in (chosen[j] for j in batch)}
            read = {i: started(x) for i, x in read.items() if len(x)}
            if read:
                where = dict(names=[rows[i]["where"] for i in read])
                # A text that is continued takes up some of the model's length.
                room = max(1, decoder.max_len - taken_by(decoder, [*read.values()]))
                given = decoder, variables, [*read.values()], min(n, room), search
                results = batch_lib.search(*given, **where, **ends)
                texts |= {i: best for i, (best, *_) in zip(read, results)}
        return texts

    def evaluate(params, extras, step: int) -> dict[str, float]:
        texts = generate(unrolled(task.variables(params, extras, context.frozen)))
        examples = [
            Example(rows[i], targets[i], tokenizer.decode(text.ids), text.score)
            for i, text in sorted(texts.items())
        ]
        form = text_metrics.normalised if options.normalize else lambda text: text
        pair = [form(e.generated) for e in examples], [form(e.target) for e in examples]
        numbers = text_metrics.compare(options.metrics, *pair)
        if jax.process_index() == 0:
            baseline = _lead(rows, pair[1], texts) if "rouge" in options.metrics else {}
            errors = [text_metrics.compare(["cer"], [c], [r])["cer"] for c, r in zip(*pair)]

            def write(folder):
                _write(folder, step, examples, errors)
                _write_worst(folder, step, examples, errors, options.worst)
                report = {"step": step, "examples": len(examples), **numbers, **baseline}
                if "bleu" in options.metrics:
                    report["bleu_tokenizer"] = text_metrics.bleu_tokenizer(pair[1])
                (folder / "report.json").write_text(json_text.dumps(report, indent=1) + "\n")

            where = context.write(name, write)
            line = "".join(f", {k} {v:.4f}" for k, v in (numbers | baseline).items())
            n_bad = len(chosen) - len(examples)
            line += f"; {n_bad:,} cannot be read" if n_bad else ""
            context.report(f"{name}, step {step}: {len(examples):,} texts{line}{where}")
        return numbers

    evaluate.metrics = text_metrics.compared(options.metrics)
    return evaluate


def _lost(tokenizer, texts: list[str]) -> int:
    """The number of texts that a tokenizer does not restore."""
    if tokenizer.lossless:
        return 0
    restored = map(tokenizer.decode, tokenizer.encode_batch(texts))
    return sum(a.strip() != b.strip() for a, b in zip(texts, restored))


class Example(NamedTuple):
    """row: of the data. generated: the text for it, with its score."""

    row: dict[str, Any]
    target: str
    generated: str
    score: float


def _lead(rows, references, indices) -> dict[str, float]:
    """{lead_NAME: value} of the first sentence of each source; {} if the rows have no text."""
    sources = [rows[i].get("source") for i in sorted(indices)]
    if not all(sources):
        return {}
    leads = [text_metrics.lead_sentence(source) for source in sources]
    return {f"lead_{k}": v for k, v in text_metrics.compare(["rouge"], leads, references).items()}


def _write(folder, step: int, examples: list[Example], errors: list[float]) -> None:
    with (folder / "generations.jsonl").open("w") as f:
        for example, error in zip(examples, errors):
            row = {k: v for k, v in example.row.items() if k not in ("row", "where")}
            own = {"generated": example.generated, "score": example.score, "cer": error}
            line = {**row, **own, "step": step}
            f.write(json_text.dumps(line, ensure_ascii=False) + "\n")


def _write_worst(folder, step: int, examples: list[Example], errors, n: int) -> None:
    wrong = sum(error > 0 for error in errors)
    order = sorted(range(len(examples)), key=lambda i: -errors[i])[: min(n, wrong)]
    head = "no text has character errors"
    if wrong:
        have = f"{plural(len(examples), 'text')} {'has' if wrong == 1 else 'have'}"
        head = f"{wrong:,} of {len(examples):,} {have} character errors; those with most"
    lines = [f"step {step}: {head}", ""]
    for i in order:
        row, target, generated, _ = examples[i]
        lines.append(f"{row['where']}: character error rate {errors[i]:.3f}")
        for key in ("source", "file"):
            if row.get(key):
                lines.append(f"  {f'{key}:':10s} {_short(row[key])}")
        shown = [_short(target), _short(generated)]
        if shown[0] == shown[1]:  # they differ in white space
            shown = [repr(target[:_SHOWN]), repr(generated[:_SHOWN])]
        lines += [f"  target:    {shown[0]}", f"  generated: {shown[1]}", ""]
    (folder / "worst.txt").write_bytes("\n".join(lines).encode())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
