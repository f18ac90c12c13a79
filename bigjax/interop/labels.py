"""Labels of a classifier: those of config.json and those of config.task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigjax.errors import UserError


class Labels(NamedTuple):
    """The outputs of a class of transformers that stand for labels.

    parameter: our name of one with an entry per label on its last axis. read(config.json) -> fields
    of config.task. put(config.json, fields of config.task): changes the keys that differ from them.
    """

    parameter: str
    read: Callable[[dict], dict[str, Any]]
    put: Callable[[dict, Mapping[str, Any]], None]


def names_of(config: dict) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order, from its config.json.

    Of equal ones, such as the two cranes of ImageNet, the later have their number: 'crane (517)'.
    """
    names = config.get("id2label")
    if names is None:
        n = config.get("num_labels", config.get("_num_labels", 2))
        if type(n) is not int or n < 1:
            raise UserError(f"config.json: num_labels is {n!r}; it must be a positive integer.")
        return unnamed(n)
    try:
        names = {int(i): str(label) for i, label in names.items()}
        ordered = [names[i] for i in range(len(names))]
        first = {label: i for i, label in reversed([*enumerate(ordered)])}
        return tuple(x if first[x] == i else f"{x} ({i})" for i, x in enumerate(ordered))
    except (AttributeError, ValueError, KeyError):
        raise UserError(
            f"config.json: id2label is {names!r}; it must map the integers "
            "from 0, without gaps, to names."
        ) from None


def unnamed(n: int) -> tuple[str, ...]:
    """The names that transformers gives to n outputs without names."""
    return tuple(f"LABEL_{i}" for i in range(n))


def _kind_of(config: dict) -> str:
    """'classify' or 'regress': the kind of a sequence classifier, from its config.json."""
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise UserError(
            "config.json: problem_type is 'multi_label_classification', which is not supported: "
            "the task classify predicts one label or one number per example."
        )
    one_output = problem is None and len(names_of(config)) == 1
    return "regress" if one_output or problem == "regression" else "classify"


def _put_names(config: dict, task: Mapping[str, Any]) -> None:
    if task["labels"] != names_of(config):
        config.update(
            id2label={str(i): label for i, label in enumerate(task["labels"])},
            label2id={label: i for i, label in enumerate(task["labels"])},
        )
        config.pop("num_labels", None)


def _put_names_and_kind(config: dict, task: Mapping[str, Any]) -> None:
    _put_names(config, task)
    if task.get("kind") and task["kind"] != _kind_of(config):
        problem = "regression" if task["kind"] == "regress" else "single_label_classification"
        config["problem_type"] = problem


def _several(config: dict) -> bool:
    """Whether a classifier of images has a probability for each label, from its config.json."""
    problem = config.get("problem_type")
    if problem == "regression":
        raise UserError(
            "config.json: problem_type is 'regression', which is not supported: the task "
            "image_classify predicts one label or several."
        )
    return problem == "multi_label_classification"


def _put_names_and_several(config: dict, task: Mapping[str, Any]) -> None:
    _put_names(config, task)
    if "several" in task and bool(task["several"]) != _several(config):
        kind = "multi" if task["several"] else "single"
        config["problem_type"] = f"{kind}_label_classification"


def named(parameter: str) -> Labels:
    """Labels alone: of a class whose config.task has `labels`."""
    return Labels(parameter, lambda config: {"labels": names_of(config)}, _put_names)


def named_with_kind(parameter: str) -> Labels:
    """Labels or one number: of a class whose config.task has `kind` and `labels`."""
    read = lambda config: {"kind": _kind_of(config), "labels": names_of(config)}
    return Labels(parameter, read, _put_names_and_kind)


def one_or_several(parameter: str) -> Labels:
    """One label or several: of a class whose config.task has `several` and `labels`."""
    read = lambda config: {"several": _several(config), "labels": names_of(config)}
    return Labels(parameter, read, _put_names_and_several)
