"""Runs tasks of lm-evaluation-harness with a model, to its results and samples."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
from typing import Any, NamedTuple

from bigjax.data.chat_template import ChatTemplate
from bigjax.errors import UserError
from bigjax.evals.harness import scores
from bigjax.evals.harness.documents import (
    Document,
    Examples,
    chat_messages,
    documents,
    read_split,
)
from bigjax.evals.harness.task_file import MAX_GEN_TOKS, HarnessTask
from bigjax.infer import likelihood, texts
from bigjax.infer.batch import by_length
from bigjax.infer.generate import Generator, Options
from bigjax.infer.likelihood import Likelihood, Pair, Parts, Scorer
from bigjax.infer.progress import Bar
from bigjax.plural import plural

_RIGHT = (3, 6, 8)  # columns of the table with numbers


class Model(NamedTuple):
    """What answers requests. template: for contexts as chats, with the system prompt; else None."""

    generator: Generator
    scorer: Scorer
    tokenizer: Any
    batch_size: int
    template: ChatTemplate | None = None
    system: str = ""


class Prepared(NamedTuple):
    """A task with its data. n_rows: of the split, before --limit."""

    task: HarnessTask
    documents: list[Document]
    n_rows: int
    examples: list[str]  # of each document
    num_fewshot: int


class Requests(NamedTuple):
    """rows: token ids of each request, or of each window of a rolling text. names: of the rows, for
    messages."""

    rows: list[Pair]
    names: list[str]
    owners: list[int]  # the document of each row
    arguments: list[list[list[Any]]]  # of each document, of each of its requests


class Outcome(NamedTuple):
    """results: {"METRIC,FILTER": value}, with standard errors. samples: one of each document and
    filter."""

    results: dict[str, Any]
    samples: list[dict[str, Any]]


def prepare(
    task: HarnessTask,
    limit: int | None,
    num_fewshot: int | None,
    log: Callable[[str], None] = print,
) -> Prepared:
    """Reads the data of a task and renders its texts, all of the checks of its rows included.

    limit: the first rows alone; None for all. num_fewshot: in place of that of the file, unless
    that is 0.
    """
    n = task.num_fewshot or 0
    if num_fewshot is not None and num_fewshot != n:
        if task.num_fewshot == 0 or task.output_type == "loglikelihood_rolling":
            log(f"note: {task.task} is evaluated without examples, as its file says")
        else:
            n = num_fewshot
    rows = read_split(task, task.split)
    within = n and (task.fewshot_split or task.split) == task.split
    known = documents(task, rows if within else rows[:limit])
    examples = Examples(task, n, known)
    chosen = known[:limit]
    return Prepared(task, chosen, len(rows), [examples.of(d) for d in chosen], n)


def run(prepared: Prepared, model: Model, log: Callable[[str], None] = print) -> Outcome:
    """The results of a task. Raises UserError for what the model cannot do."""
    if prepared.task.output_type == "generate_until":
        return _generate(prepared, model, log)
    return _score(prepared, model, log)


def contexts(prepared: Prepared, model: Model) -> list[Parts]:
    """The context of each document: texts, and special tokens of the chat template between."""
    given = [*zip(prepared.documents, prepared.examples)]
    if model.template is None:
        return [[d.description + examples + d.text] for d, examples in given]
    rows = [
        {"messages": chat_messages(d, examples, model.system), "where": d.where}
        for d, examples in given
    ]
    return model.template.prompt_parts(rows)


# --- Log-likelihoods -----------------------------------------------------------------------------


def _score(prepared: Prepared, model: Model, log: Callable[[str], None]) -> Outcome:
    task = prepared.task
    requests = _rolling(prepared, model) if _is_rolling(task) else _pairs(prepared, model)
    truncated = sum(map(model.scorer.is_truncated, requests.rows))
    if truncated:
        log(
            f"note: {task.task}: {truncated:,} of {len(requests.rows):,} requests are longer than "
            f"{model.scorer.decoder.limit}={model.scorer.decoder.max_len} and lose the beginning "
            "of their context"
        )
    with Bar(len(requests.rows), 0, "scor", "request", log) as bar:
        likelihoods = model.scorer(requests.rows, requests.names, bar.add)
    of_document: list[list[Likelihood]] = [[] for _ in prepared.documents]
    for owner, one in zip(requests.owners, likelihoods):
        of_document[owner].append(one)
    items: dict[str, list] = {metric.name: [] for metric in task.metrics}
    samples = []
    for i, (document, own) in enumerate(zip(prepared.documents, of_document)):
        values = _values(task, document, own)
        for name in items:
            items[name].append(values[name])
        if _is_rolling(task):
            responses: list = [[sum(x.log_p for x in own)]]
        else:
            responses = [[[x.log_p, x.greedy]] for x in own]
        samples.append(
            _sample(
                prepared, i, requests.arguments[i], responses, [r[0] for r in responses],
                scores.NO_FILTER, {name: values[name] for name in items},
            )
        )  # fmt: skip
    return Outcome(_results(items, scores.NO_FILTER), samples)


def _is_rolling(task: HarnessTask) -> bool:
    return task.output_type == "loglikelihood_rolling"


def _pairs(prepared: Prepared, model: Model) -> Requests:
    task = prepared.task
    before = task.target_delimiter
    if model.template is not None:
        before = model.template.before_answer
    asked: list[tuple[Parts, str]] = []
    owners, arguments = [], []
    for i, (document, parts) in enumerate(zip(prepared.documents, contexts(prepared, model))):
        if task.output_type == "multiple_choice":
            assert document.choices is not None
            continuations = [before + choice for choice in document.choices]
        else:
            before = before if model.template is not None else ""  # as the harness
            continuations = [before + document.answer]
            if not document.answer:
                raise UserError(f"{document.where}: doc_to_target gives an empty text. Fill it in.")
        asked += [(parts, text) for text in continuations]
        owners += [i] * len(continuations)
        arguments.append([[_shown(parts, model), text] for text in continuations])
    names = [prepared.documents[i].where for i in owners]
    return Requests(likelihood.pairs(model.tokenizer, asked), names, owners, arguments)


def _rolling(prepared: Prepared, model: Model) -> Requests:
    rows, owners, arguments = [], [], []
    for i, document in enumerate(prepared.documents):
        windows = likelihood.rolling(model.tokenizer, document.answer, model.scorer.decoder.max_len)
        rows += windows
        owners += [i] * len(windows)
        arguments.append([[document.answer]])
    return Requests(rows, [prepared.documents[i].where for i in owners], owners, arguments)


def _values(
    task: HarnessTask, document: Document, likelihoods: Sequence[Likelihood]
) -> dict[str, Any]:
    """What each metric of the task has of one document."""
    if task.output_type == "multiple_choice":
        gold = document.target if isinstance(document.target, list) else [document.target]
        log_ps, greedy = zip(*likelihoods)
        return scores.of_choices(log_ps, greedy, document.choices or [], gold)
    log_p = sum(one.log_p for one in likelihoods)
    if _is_rolling(task):
        n_words, n_bytes = scores.n_words(document.answer), len(document.answer.encode())
        return {
            "word_perplexity": (log_p, n_words),
            "byte_perplexity": (log_p, n_bytes),
            "bits_per_byte": (log_p, n_bytes),
        }
    return {"perplexity": log_p, "acc": float(likelihoods[0].greedy)}


# --- Generation ----------------------------------------------------------------------------------


def _generate(prepared: Prepared, model: Model, log: Callable[[str], None]) -> Outcome:
    task, asked = prepared.task, contexts(prepared, model)
    ids = likelihood.prompts(model.tokenizer, asked)
    options = _options(task, model)
    decoder = model.generator.decoder
    most = decoder.max_len - options.max_new_tokens
    if truncated := sum(len(row) > most for row in ids):
        log(
            f"note: {task.task}: {truncated:,} of {len(ids):,} prompts have more than {most} "
            f"tokens, which {decoder.limit}={decoder.max_len} leaves beside "
            f"{options.max_new_tokens} new ones, and lose their beginning"
        )
    answers = _answers([row[-most:] for row in ids], task, model, options, log)
    keys = [(m, name) for name in task.filters for m in task.metrics]
    items: dict[tuple[str, str], list] = {(m.name, name): [] for m, name in keys}
    samples = []
    settings = {
        "until": [*task.generation.until],
        "max_gen_toks": options.max_new_tokens,
        "do_sample": options.temperature > 0,
        "temperature": options.temperature,
    }
    for i, (document, own) in enumerate(zip(prepared.documents, answers)):
        for name, pipeline in task.filters.items():
            answer = scores.filtered(own, pipeline)
            values: dict[str, Any] = {}
            for metric in task.metrics:
                values[metric.name] = (
                    scores.exact_match(answer, document.answers, metric.options)
                    if metric.name == "exact_match"
                    else (answer, document.answer)
                )
                items[metric.name, name].append(values[metric.name])
            arguments = [[_shown(asked[i], model), settings]]
            samples.append(_sample(prepared, i, arguments, [own], [answer], name, values))
    results: dict[str, Any] = {}
    for name in task.filters:
        results |= _results({m.name: items[m.name, name] for m in task.metrics}, name)
    return Outcome(results, samples)


def _options(task: HarnessTask, model: Model) -> Options:
    decoder, chosen = model.generator.decoder, task.generation
    n = chosen.max_tokens
    if n is None:
        n = min(MAX_GEN_TOKS, max(1, decoder.max_len // 2))
    if n >= decoder.max_len:
        raise UserError(
            f"{task.file}: max_gen_toks is {n:,}, but with {decoder.limit}={decoder.max_len} at "
            f"most {decoder.max_len - 1:,} tokens can follow a prompt. Lower it."
        )
    ends = (model.template or model.tokenizer).end_ids
    return Options(n, chosen.temperature, chosen.top_k, chosen.top_p, ends[0], ends[1:])


def _answers(
    ids: Sequence[Sequence[int]],
    task: HarnessTask,
    model: Model,
    options: Options,
    log: Callable[[str], None],
) -> list[list[str]]:
    """The answers to each prompt, task.repeats of them."""
    answers = [[""] * task.repeats for _ in ids]
    before = model.template.before_answer if model.template else ""
    asked = [(i, number) for i in range(len(ids)) for number in range(task.repeats)]
    with Bar(len(asked), 0, "generat", "text", log) as bar:
        for batch in by_length([len(ids[i]) for i, _ in asked], model.batch_size):
            samples = [asked[j] for j in batch]
            rows = [ids[i] for i, _ in samples]
            more = dict(stop=task.generation.until, samples=samples)
            generated = texts.of_ids(model.generator, model.tokenizer, rows, options, **more)
            for (i, number), text in zip(samples, generated):
                answers[i][number] = text.removeprefix(before)
            bar.add(len(batch))
    return answers


# --- Results -------------------------------------------------------------------------------------


def _results(items: Mapping[str, list], name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for metric, values in items.items():
        value, error = scores.aggregated(metric, values)
        out[f"{metric},{name}"] = value
        out[f"{metric}_stderr,{name}"] = "N/A" if error is None else error
    return out


def _shown(parts: Parts, model: Model) -> str:
    """A context as text, with the texts of special tokens."""
    special = {i: text for text, i in model.tokenizer.special.items()}
    return "".join(p if isinstance(p, str) else special.get(p, "") for p in parts)


def _sample(
    prepared: Prepared,
    i: int,
    arguments: list[list[Any]],
    responses: list,
    filtered: list,
    name: str,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """What the harness writes of a document with log_samples."""
    document = prepared.documents[i]
    text = lambda value: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    digest = lambda value: hashlib.sha256(text(value).encode()).hexdigest()
    return {
        "task": prepared.task.task,
        "doc_id": i,
        "doc": document.doc,
        "target": document.target,
        "arguments": {
            f"gen_args_{j}": {f"arg_{k}": x for k, x in enumerate(one)}
            for j, one in enumerate(arguments)
        },
        "resps": responses,
        "filtered_resps": filtered,
        "filter": name,
        "metrics": [*values],
        "doc_hash": digest(document.doc),
        "prompt_hash": digest(arguments[0][0]),
        "target_hash": digest(document.target),
        **values,
    }


def report(prepared: Sequence[Prepared], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The results of all tasks, in the form of the harness's results file."""
    pairs = [*zip(prepared, outcomes)]
    return {
        "results": {p.task.task: {"alias": p.task.alias, **o.results} for p, o in pairs},
        "group_subtasks": {p.task.task: [] for p in prepared},
        "configs": {p.task.task: dict(p.task.raw) for p in prepared},
        "versions": {p.task.task: p.task.version for p in prepared},
        "n-shot": {p.task.task: p.num_fewshot for p in prepared},
        "higher_is_better": {
            p.task.task: {m.name: m.higher_is_better for m in p.task.metrics} for p in prepared
        },
        "n-samples": {
            p.task.task: {"original": p.n_rows, "effective": len(p.documents)} for p in prepared
        },
    }


def table(prepared: Sequence[Prepared], outcomes: Sequence[Outcome]) -> str:
    """The results for people: a row for each metric of each task and filter."""
    head = ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
    rows = [head]
    for p, outcome in zip(prepared, outcomes):
        first = [p.task.alias, str(p.task.version)]
        for name in p.task.filters:
            for metric in p.task.metrics:
                value = outcome.results[f"{metric.name},{name}"]
                error = outcome.results[f"{metric.name}_stderr,{name}"]
                arrow = "↑" if metric.higher_is_better else "↓"
                shown = error if isinstance(error, str) else _number(error)
                shot = str(p.num_fewshot)
                rows.append([*first, name, shot, metric.name, arrow, _number(value), "±", shown])
                first = ["", ""]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ["-" * (w - 1) + ":" if i in _RIGHT else "-" * w for i, w in enumerate(widths)]
    lines = [_line(row, widths) for row in (head, rule, *rows[1:])]
    n = sum(len(p.documents) for p in prepared)
    return "\n".join([*lines, f"{n:,} {plural(n, 'document')}"])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        x.rjust(w) if i in _RIGHT else x.ljust(w) for i, (x, w) in enumerate(zip(cells, widths))
    ]
    return "|".join(["", *padded, ""])


def _number(x: float) -> str:
    return f"{x:.4f}" if abs(x) < 1e6 else f"{x:.4g}"
