"""Task files of lm-evaluation-harness, in YAML or JSON: read and checked.

What is not supported is refused, by its name. https://github.com/EleutherAI/lm-evaluation-harness
describes the keys in docs/task_guide.md.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import re
from typing import Any

from bigjax import config as config_lib
from bigjax.data.text_files import read_text
from bigjax.data.values import describe
from bigjax.errors import UserError
from bigjax.evals.harness import scores
from bigjax.evals.harness.scores import Filter, Metric

READERS = {"json": (".json", ".jsonl"), "csv": (".csv",), "parquet": (".parquet",)}
OUTPUT_TYPES = ("multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling")
SAMPLERS = ("default", "first_n")
MAX_GEN_TOKS = 256
_FUNCTIONS = "it is a Python function, and tasks here are data alone"
_GROUPS = "it describes a group of tasks; give the files of its tasks, each with --tasks"
_REFUSED = {
    "include": "copy the keys of that file into this one",
    "group": _GROUPS,
    "group_alias": _GROUPS,
    "aggregate_metric_list": _GROUPS,
    "process_docs": f"{_FUNCTIONS}; write the rows as they are needed into the data file",
    "process_results": _FUNCTIONS,
    "custom_dataset": _FUNCTIONS,
    "class": _FUNCTIONS,
    "use_prompt": "write the template of promptsource into doc_to_text",
    "gen_prefix": "write it at the end of doc_to_text",
    "doc_to_image": "only texts are supported",
    "doc_to_audio": "only texts are supported",
    "unsafe_code": "no code of a model is run",
}
# Without an effect on the results, in the harness too.
_NOTES = ("tag", "should_decontaminate", "doc_to_decontamination_query")
_GENERATION = {
    "until": (str, list),
    "max_gen_toks": int,
    "do_sample": bool,
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """until: texts that end an answer. max_tokens: None if the file does not say. temperature: 0
    for the most likely tokens."""

    until: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclasses.dataclass(frozen=True)
class HarnessTask:
    """A task file. Fields have the names and the meaning of its keys, with these exceptions.

    file: its path. files: {split: paths}. split: what is evaluated. fewshot_split: None if no split
    is named for examples. raw: the content of the file.
    """

    file: str
    raw: Mapping[str, Any]
    task: str
    alias: str
    version: Any
    output_type: str
    dataset_path: str
    files: Mapping[str, Sequence[str]]
    split: str
    fewshot_split: str | None
    doc_to_text: Any
    doc_to_target: Any
    doc_to_choice: Any
    description: str
    target_delimiter: str
    fewshot_delimiter: str
    num_fewshot: int | None
    sampler: str
    generation: Generation
    filters: Mapping[str, Sequence[Filter]]
    metrics: Sequence[Metric]
    repeats: int


def read_all(paths: Sequence[str]) -> list[HarnessTask]:
    """The tasks of these files. Raises UserError for two tasks of one name."""
    tasks = [read(path) for path in paths]
    files: dict[str, str] = {}
    for task in tasks:
        if task.task in files:
            raise UserError(
                f"{files[task.task]} and {task.file} both define the task {task.task!r}. Give one "
                "of them another name: its key `task`."
            )
        files[task.task] = task.file
    return tasks


def read(path: str) -> HarnessTask:
    """The task of a .json, .yaml or .yml file, whose paths are relative to it.

    Raises UserError for a file that cannot be read, and for keys that are unknown, missing, not
    supported or have invalid values.
    """
    raw = _content(path)
    known = {field.name for field in dataclasses.fields(HarnessTask)} - {
        *("file", "raw", "alias", "version", "files", "split", "sampler", "generation"),
        *("filters", "metrics"),
    }
    known |= {"task_alias", "metadata", "dataset_name", "dataset_kwargs", "test_split"}
    known |= {"validation_split", "training_split", "fewshot_config", "generation_kwargs"}
    known |= {"filter_list", "metric_list", *_NOTES}
    for key in raw:
        if key in _REFUSED and raw[key] not in (None, False):
            raise UserError(f"{path}: the key {key!r} is not supported: {_REFUSED[key]}.")
        if key not in known and key not in _REFUSED:
            raise UserError(
                f"{path}: unknown key {key!r}. {config_lib.nearest(str(key), sorted(known))}"
            )
    _refuse_functions(raw, path)
    keys = _Keys(path, raw)
    output_type = keys.one_of("output_type", OUTPUT_TYPES, "generate_until")
    name = keys.get("task", str)
    if isinstance(raw.get("task"), list):
        raise UserError(f"{path}: the key 'task' is a list: {_GROUPS}.")
    if not name:
        raise UserError(f"{path}: the key 'task' is missing. Give the task a name.")
    choice = keys.get("doc_to_choice", (str, list, dict))
    if output_type == "multiple_choice" and choice is None:
        raise UserError(
            f"{path}: output_type 'multiple_choice' needs the key 'doc_to_choice': a list of "
            "texts, a column, or a template."
        )
    for key, types in (("doc_to_text", str), ("doc_to_target", (str, int, list))):
        if keys.get(key, types) is None and (key, output_type) != (
            "doc_to_text",
            "loglikelihood_rolling",
        ):
            raise UserError(f"{path}: the key {key!r} is missing: a column or a template.")
    metadata = keys.get("metadata", dict) or {}
    fewshot_delimiter = keys.get("fewshot_delimiter", str, "\n\n")
    files, split = _files(keys), _split(keys)
    fewshot_split, sampler = _fewshot(keys)
    generated = output_type == "generate_until"
    for key in () if generated else ("filter_list", "generation_kwargs"):
        if raw.get(key):
            raise UserError(
                f"{path}: the key {key!r} has no effect on output_type {output_type!r}; it is for "
                "'generate_until'. Remove it."
            )
    repeats = keys.count("repeats", 1, 1)
    if repeats > 1 and not generated:
        raise UserError(f"{path}: repeats is {repeats}, which is only for 'generate_until'.")
    num_fewshot = keys.count("num_fewshot", None, 0)
    if output_type == "loglikelihood_rolling" and num_fewshot:
        raise UserError(
            f"{path}: num_fewshot is {num_fewshot}; 'loglikelihood_rolling' has no examples. Set "
            "it to 0."
        )
    return HarnessTask(
        file=path,
        raw=raw,
        task=name,
        alias=keys.get("task_alias", str, name),
        version=metadata.get("version", "Yaml"),
        output_type=output_type,
        dataset_path=keys.one_of("dataset_path", tuple(READERS)),
        files=files,
        split=split,
        fewshot_split=fewshot_split,
        doc_to_text=raw.get("doc_to_text", ""),
        doc_to_target=raw["doc_to_target"],
        doc_to_choice=choice,
        description=keys.get("description", str, ""),
        target_delimiter=keys.get("target_delimiter", str, " "),
        fewshot_delimiter=fewshot_delimiter,
        num_fewshot=num_fewshot,
        sampler=sampler,
        generation=_generation(keys, fewshot_delimiter),
        filters=scores.filters(keys.get("filter_list", list), repeats, path),
        metrics=scores.metrics(keys.get("metric_list", list), output_type, path),
        repeats=repeats,
    )


class _Keys:
    """The values of a task file, checked."""

    def __init__(self, path: str, raw: Mapping[str, Any]) -> None:
        self.path, self.raw = path, raw

    def get(self, key: str, types: Any, default: Any = None) -> Any:
        value = self.raw.get(key)
        if value is None:
            return default
        is_number = isinstance(value, bool) and bool not in (types if _many(types) else [types])
        if not isinstance(value, types) or is_number:
            if key == "task" and isinstance(value, list):
                return None
            names = " or ".join(_TYPES[t] for t in (types if _many(types) else (types,)))
            raise UserError(f"{self.path}: {key} is {describe(value)}; it has to be {names}.")
        return value

    def one_of(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self.get(key, str, default)
        if value not in allowed:
            shown = "missing" if value is None else repr(value)
            more = ""
            if key == "dataset_path":
                more = ", for the local files that dataset_kwargs.data_files names"
            raise UserError(
                f"{self.path}: {key} is {shown}; supported: {', '.join(allowed)}{more}."
            )
        return value

    def count(self, key: str, default: int | None, least: int) -> Any:
        value = self.get(key, int, default)
        if value is not None and value < least:
            raise UserError(f"{self.path}: {key} is {value}; it must be at least {least}.")
        return value


_TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _many(types: Any) -> bool:
    return isinstance(types, tuple)


def _content(path: str) -> dict[str, Any]:
    what = "a task of lm-evaluation-harness in .json, .yaml or .yml"
    kind = os.path.splitext(path.lower())[1]
    if kind not in (".json", ".yaml", ".yml"):
        raise UserError(f"{path}: the name of a task file has to end in .json, .yaml or .yml.")
    text = read_text(path, what)
    try:
        raw = json.loads(text) if kind == ".json" else _yaml(text, path)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e}). It has to be {what}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {describe(raw)}; a task file has to be an object of keys.")
    return raw


def _yaml(text: str, path: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def refuse(loader, node):
        mark = node.start_mark
        raise UserError(
            f"{path}:{mark.line + 1}: {node.tag} {getattr(node, 'value', '')} is not supported: "
            f"{_FUNCTIONS}. Write a template, or the texts into the data file."
        )

    Loader.add_constructor(None, refuse)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not YAML ({' '.join(str(e).split())}). Correct it.") from None


def _refuse_functions(value: Any, path: str) -> None:
    """Refuses '!function' in the texts of a .json file, where YAML would have a tag."""
    if isinstance(value, str) and value.lstrip().startswith("!function"):
        raise UserError(f"{path}: {value.strip()} is not supported: {_FUNCTIONS}.")
    inner = value.values() if isinstance(value, dict) else value
    for x in inner if isinstance(value, (dict, list)) else ():
        _refuse_functions(x, path)


def _files(keys: _Keys) -> dict[str, list[str]]:
    name = keys.get("dataset_name", str)
    if name not in (None, "default"):
        raise UserError(f"{keys.path}: dataset_name is {name!r}, but local files have no parts.")
    options = keys.get("dataset_kwargs", dict) or {}
    if unknown := {*options} - {"data_files"}:
        raise UserError(
            f"{keys.path}: dataset_kwargs has {min(map(str, unknown))!r}; supported: data_files."
        )
    files = options.get("data_files")
    splits = files if isinstance(files, dict) else {"train": files}  # as datasets names one file
    folder, allowed = os.path.dirname(keys.path), READERS[keys.one_of("dataset_path", [*READERS])]
    out: dict[str, list[str]] = {}
    for split, value in splits.items():
        paths = value if isinstance(value, list) else [value]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise UserError(
                f"{keys.path}: dataset_kwargs.data_files holds {describe(value)}; it has to be a "
                "file, or an object with the file of each split."
            )
        for path in paths:
            if "://" in path and not path.startswith("gs://"):
                raise UserError(f"{keys.path}: {path} is not a local file. Download it first.")
            if not re.search(rf"({'|'.join(map(re.escape, allowed))})(\.\w+)?$", path.lower()):
                raise UserError(
                    f"{keys.path}: the name of {path} has to end in {' or '.join(allowed)}, as "
                    f"dataset_path is {keys.raw['dataset_path']!r}."
                )
        whole = [p if "://" in p else os.path.join(folder, os.path.expanduser(p)) for p in paths]
        out[str(split)] = whole
    return out


def _split(keys: _Keys) -> str:
    """The split that is evaluated. Raises UserError for one without a file."""
    splits = _files(keys)
    names = ("test_split", "validation_split", "training_split", "fewshot_split")
    for key in names:
        if (split := keys.get(key, str)) is not None and split not in splits:
            raise UserError(
                f"{keys.path}: {key} is {split!r}, but data_files has "
                f"{', '.join(map(repr, splits))}. (A single file is the split 'train'.)"
            )
    chosen = keys.get("test_split", str) or keys.get("validation_split", str)
    if not chosen:
        raise UserError(
            f"{keys.path}: no split is named. Set test_split to one of "
            f"{', '.join(map(repr, splits))}."
        )
    return chosen


def _fewshot(keys: _Keys) -> tuple[str | None, str]:
    """(the split of examples, the sampler)."""
    options = keys.get("fewshot_config", dict) or {}
    if unknown := {*options} - {"sampler", "split"}:
        raise UserError(
            f"{keys.path}: fewshot_config has {min(map(str, unknown))!r}; supported: sampler, "
            "split."
        )
    sampler = options.get("sampler", "default")
    if sampler not in SAMPLERS:
        raise UserError(
            f"{keys.path}: fewshot_config.sampler is {sampler!r}; supported: {', '.join(SAMPLERS)}."
        )
    split = options.get("split")
    if split is not None and split not in (files := _files(keys)):
        raise UserError(
            f"{keys.path}: fewshot_config.split is {split!r}, but data_files has "
            f"{', '.join(map(repr, files))}."
        )
    for key in ("fewshot_split", "training_split", "validation_split"):
        split = split or keys.get(key, str)
    return split, sampler


def _generation(keys: _Keys, delimiter: str) -> Generation:
    options = keys.get("generation_kwargs", dict) or {}
    for key, value in options.items():
        if key not in _GENERATION:
            raise UserError(
                f"{keys.path}: generation_kwargs has {key!r}; supported: {', '.join(_GENERATION)}."
            )
        _Keys(keys.path, {key: value}).get(key, _GENERATION[key])
    until = options.get("until")
    until = [delimiter] if until is None else [until] if isinstance(until, str) else until
    if not all(isinstance(text, str) for text in until):
        raise UserError(f"{keys.path}: generation_kwargs.until has to be a list of texts.")
    tokens = options.get("max_gen_toks")
    if tokens is not None and tokens < 1:
        raise UserError(f"{keys.path}: max_gen_toks is {tokens}; it must be at least 1.")
    temperature = float(options.get("temperature") or 0.0)
    samples = options.get("do_sample")
    if samples and not temperature:
        raise UserError(
            f"{keys.path}: generation_kwargs has do_sample, but no temperature above 0. Set one, "
            "or do_sample to false."
        )
    top_p, top_k = options.get("top_p"), options.get("top_k")
    return Generation(
        until=tuple(text for text in until if text),
        max_tokens=tokens,
        temperature=0.0 if samples is False else temperature,
        top_p=1.0 if top_p is None else float(top_p),
        top_k=top_k or 0,
    )
