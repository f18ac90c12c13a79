"""The rows of a task's files, and what follows from them: contexts, choices and targets."""

import ast
from collections.abc import Mapping, Sequence
import json
import random
from typing import Any, NamedTuple

from bigjax import config as config_lib
from bigjax.data.tables import read_table
from bigjax.data.template_process import TemplateProcess
from bigjax.data.text_files import extension, read_text
from bigjax.data.values import describe
from bigjax.errors import UserError
from bigjax.evals.harness.task_file import HarnessTask

FEWSHOT_SEED = 1234
_AT_ONCE = 64  # rows of one call of a template, which share its time limit


class Row(NamedTuple):
    """doc: the columns of a row. where: its file and line, for messages."""

    doc: dict[str, Any]
    where: str


class Document(NamedTuple):
    """A row with its texts.

    target: a text, the index of a choice, or a list of several right ones. choices: None without
    doc_to_choice.
    """

    doc: dict[str, Any]
    where: str
    text: str
    target: Any
    choices: list[str] | None
    description: str

    @property
    def answer(self) -> str:
        """The target as text, the first one of several."""
        target = self.target[0] if isinstance(self.target, list) else self.target
        if isinstance(target, int) and self.choices is not None:
            return self.choices[target]
        return str(target)

    @property
    def answers(self) -> list[str]:
        """All right answers as texts."""
        targets = self.target if isinstance(self.target, list) else [self.target]
        return [self._replace(target=target).answer for target in targets]


# --- Rows ----------------------------------------------------------------------------------------


def read_split(task: HarnessTask, split: str) -> list[Row]:
    """The rows of a split. Raises UserError for a file that cannot be read or has no rows."""
    rows = [row for path in task.files[split] for row in _rows(path)]
    if not rows:
        raise UserError(f"{task.file}: the split {split!r} has no rows.")
    return rows


def _rows(path: str) -> list[Row]:
    kind = extension(path)
    if kind == ".json":
        return _json_rows(path)
    rows = [Row(row["row"], row["where"]) for row in read_table(path, [])]
    if kind == ".csv":
        return _typed(rows)
    for row in rows if kind == ".parquet" else ():
        try:
            json.dumps(row.doc)
        except TypeError as e:
            raise UserError(
                f"{row.where}: a value has no form in JSON ({e}). Remove its column, or convert "
                "it to text."
            ) from None
    return rows


def _json_rows(path: str) -> list[Row]:
    """The rows of a .json file: a list of objects, or an object on each line."""
    text = read_text(path, "a list of JSON objects, or one on each line")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        values = json.loads(text) if text.lstrip().startswith("[") else None
        named = (
            [(f"{path}:{n}", json.loads(line)) for n, line in lines]
            if values is None
            else [(f"{path}: item {i + 1}", x) for i, x in enumerate(values)]
        )
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{path}: not JSON ({e}). It has to be a list of objects, or one on each line."
        ) from None
    for where, value in named:
        if not isinstance(value, dict):
            raise UserError(f"{where}: found {describe(value)}; each row has to be a JSON object.")
    return [Row(value, where) for where, value in named]


def _typed(rows: list[Row]) -> list[Row]:
    """Rows of .csv, in which a column of whole numbers, or of numbers, has these, and an empty
    field is None."""
    columns: dict[str, list[Any]] = {}
    for name in rows[0].doc if rows else ():
        texts = [row.doc[name] for row in rows]
        columns[name] = [text or None for text in texts]
        for kind in (int, float):
            try:
                columns[name] = [kind(text) if text else None for text in texts]
                break
            except ValueError:
                continue
    return [
        Row({name: values[i] for name, values in columns.items()}, row.where)
        for i, row in enumerate(rows)
    ]


# --- Their texts ---------------------------------------------------------------------------------


def documents(task: HarnessTask, rows: Sequence[Row]) -> list[Document]:
    """The rows with their texts.

    Raises UserError, with file and line, for a template that cannot be rendered, a column that a
    row lacks, and for choices and targets that are not valid.
    """
    texts = _values(task, "doc_to_text", task.doc_to_text, rows)
    targets = _values(task, "doc_to_target", task.doc_to_target, rows)
    choices = [None] * len(rows)
    if task.doc_to_choice is not None:
        choices = _values(task, "doc_to_choice", task.doc_to_choice, rows)
    descriptions = [task.description] * len(rows)
    if "{" in task.description:
        descriptions = _rendered(task, "description", task.description, rows)
    out = []
    for row, text, target, choice, description in zip(rows, texts, targets, choices, descriptions):
        if choice is not None:
            choice = _checked_choices(choice, row.where)
        text = _checked_text(text, choice, row.where)
        target = _checked_target(target, choice, task, row.where)
        out.append(Document(row.doc, row.where, text, target, choice, description))
    return out


def _values(task: HarnessTask, key: str, spec: Any, rows: Sequence[Row]) -> list[Any]:
    """The value of a key of the task for each row: a constant, a column, or a rendered template."""
    if isinstance(spec, dict):
        return [[*spec.values()]] * len(rows)
    if not isinstance(spec, str):
        return [spec] * len(rows)
    columns = {name for row in rows for name in row.doc}
    if spec in columns:
        for row in rows:
            if row.doc.get(spec) is None:
                raise UserError(
                    f"{row.where}: the row has no {spec!r}, the column of {key} in {task.file}. "
                    "Fill it in, or remove the row."
                )
        return [row.doc[spec] for row in rows]
    if spec.isidentifier():
        raise UserError(
            f"{task.file}: {key} is {spec!r}, which is no column of {rows[0].where}. "
            f"{config_lib.nearest(spec, sorted(columns))} For this text itself write "
            f"{{{{ {spec!r} }}}}."
        )
    rendered = _rendered(task, key, spec, rows)
    if key == "doc_to_text":
        return rendered
    return [_literal(text, key, task, row.where) for text, row in zip(rendered, rows)]


def _literal(text: str, key: str, task: HarnessTask, where: str) -> Any:
    """The value that a rendered text stands for: an index, a list, or text."""
    if key == "doc_to_target":
        if text.isdigit() and task.doc_to_choice is not None:
            return int(text)
        if not (text.startswith("[") and text.endswith("]")):
            return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if key == "doc_to_target":
            return text
        raise UserError(
            f"{where}: doc_to_choice of {task.file} gives {text[:60]!r}; it has to give a list of "
            "texts, such as ['yes', 'no']."
        ) from None


def _rendered(task: HarnessTask, key: str, template: str, rows: Sequence[Row]) -> list[str]:
    process = TemplateProcess(template, f"{key} of {task.file}", form="harness")
    try:
        out: list[str] = []
        for at in range(0, len(rows), _AT_ONCE):
            part = rows[at : at + _AT_ONCE]
            try:
                out += process.render([row.doc for row in part])
            except UserError:  # which row?
                for row in part:
                    out += _one(process, row)
        return out
    finally:
        process.close()


def _one(process: TemplateProcess, row: Row) -> list[str]:
    try:
        return process.render([row.doc])
    except UserError as e:
        names = ", ".join(map(repr, row.doc)) or "none"
        raise UserError(f"{row.where}: {e} The row has the columns {names}.") from None


def _checked_choices(choices: Any, where: str) -> list[str]:
    if not isinstance(choices, list) or not all(isinstance(x, str) for x in choices):
        raise UserError(
            f"{where}: doc_to_choice gives {describe(choices)}; it has to be a list of texts."
        )
    if not choices:
        raise UserError(f"{where}: doc_to_choice gives no choice. Give two or more.")
    if not all(choices):
        raise UserError(f"{where}: choice {choices.index('') + 1} is empty. Fill it in.")
    return choices


def _checked_text(text: Any, choices: list[str] | None, where: str) -> str:
    number = isinstance(text, (int, float))
    if choices is not None and (number or isinstance(text, str) and text.isdigit()):
        raise UserError(
            f"{where}: doc_to_text gives the number {text}, which would choose one of several "
            "contexts; that is not supported. Write the context into doc_to_text, and what follows "
            "it into doc_to_choice."
        )
    if number:
        return str(text)
    if not isinstance(text, str):
        raise UserError(f"{where}: doc_to_text gives {describe(text)}; it has to be text.")
    return text


def _checked_target(target: Any, choices: list[str] | None, task: HarnessTask, where: str) -> Any:
    """The target, with indices in place of texts for multiple_choice."""
    one_of = lambda x: _index(x, choices, where) if choices is not None else x
    if task.output_type != "multiple_choice":
        one_of = lambda x: (
            _index(x, choices, where) if isinstance(x, int) and choices is not None else x
        )
    several = isinstance(target, list)
    targets = [one_of(x) for x in (target if several else [target])]
    if several and task.output_type.startswith("loglikelihood"):
        raise UserError(f"{where}: doc_to_target gives a list; {task.output_type!r} needs a text.")
    if not targets or not all(isinstance(x, (str, int, float)) for x in targets):
        raise UserError(
            f"{where}: doc_to_target gives {describe(target)}; it has to be text, the index of a "
            "choice, or a list of these."
        )
    if several and {m.name for m in task.metrics} & {"bleu", "chrf"}:
        raise UserError(
            f"{where}: doc_to_target gives a list, but bleu and chrf are supported with one "
            "reference. Choose one, or another metric."
        )
    return targets if several else targets[0]


def _index(target: Any, choices: list[str] | None, where: str) -> int:
    assert choices is not None
    if isinstance(target, str):
        if target not in choices:
            raise UserError(
                f"{where}: the target {target[:60]!r} is none of the {len(choices)} choices. "
                "Correct doc_to_target, which gives the index or the text of the right one."
            )
        return choices.index(target)
    if not isinstance(target, int) or not 0 <= target < len(choices):
        raise UserError(
            f"{where}: the target is {target if isinstance(target, int) else describe(target)}; "
            f"it has to be the index of one of the {len(choices)} choices, 0 to "
            f"{len(choices) - 1}."
        )
    return int(target)


# --- Contexts ------------------------------------------------------------------------------------


class Examples:
    """Chooses the examples of each context, in the order of the harness: call `of` once for each
    document, in turn."""

    def __init__(self, task: HarnessTask, n: int, evaluated: Sequence[Document]) -> None:
        """n: examples of each context. evaluated: all documents of the split task.split.

        Raises UserError if there are too few documents.
        """
        self._task, self._n, self._draw = task, n, n
        self._random = random.Random(FEWSHOT_SEED)
        self._documents: Sequence[Document] = ()
        if not n:
            return
        split = task.fewshot_split or task.split
        if split == task.split:  # the document itself is left out
            self._documents, self._draw = evaluated, n + 1
        else:
            self._documents = documents(task, read_split(task, split))
        if len(self._documents) < self._draw:
            raise UserError(
                f"{task.file}: num_fewshot={n} needs {self._draw} rows, but the split {split!r} "
                f"has {len(self._documents)}. Lower --num_fewshot."
            )

    def of(self, document: Document) -> str:
        """The examples before a document's text."""
        if not self._n:
            return ""
        if self._task.sampler == "first_n":
            drawn = self._documents[: self._draw]
        else:
            drawn = self._random.sample(self._documents, self._draw)
        text = ""
        for example in [x for x in drawn if x.doc != document.doc][: self._n]:
            text += example.text
            if answer := example.answer:
                text += self._task.target_delimiter + answer + self._task.fewshot_delimiter
        return text


def chat_messages(document: Document, examples: str, system: str) -> list[Mapping[str, str]]:
    """The context as messages: the description as the system's, the rest as the user's. system:
    the prompt of the run, before the description."""
    first = "\n\n".join(text for text in (system, document.description) if text)
    turns = [{"role": "system", "content": first}] if first else []
    return [*turns, {"role": "user", "content": examples + document.text}]
