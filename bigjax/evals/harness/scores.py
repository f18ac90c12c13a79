"""Filters of generated answers, metrics and their standard errors, as lm-evaluation-harness has
them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import math
import re
import string
from typing import Any, NamedTuple

import numpy as np

from bigjax import config as config_lib
from bigjax.data.values import describe
from bigjax.errors import UserError
from bigjax.evals import text_metrics

Filter = Callable[[list[str]], Any]  # from the answers to one document to answers, or to one

NO_FILTER = "none"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)


class Metric(NamedTuple):
    """A metric of a task. options: of exact_match."""

    name: str
    higher_is_better: bool
    options: Mapping[str, Any]


class Kind(NamedTuple):
    """What a metric is for: output types, its aggregation, and whether more is better."""

    output_types: tuple[str, ...]
    aggregation: str = "mean"
    higher_is_better: bool = True


_ROLLING = ("loglikelihood_rolling",)
KINDS = {
    "acc": Kind(("multiple_choice", "loglikelihood")),
    "acc_norm": Kind(("multiple_choice",)),
    "exact_match": Kind(("generate_until", "multiple_choice")),
    "bleu": Kind(("generate_until",), "bleu"),
    "chrf": Kind(("generate_until",), "chrf"),
    "perplexity": Kind(("loglikelihood",), "perplexity", False),
    "word_perplexity": Kind(_ROLLING, "weighted_perplexity", False),
    "byte_perplexity": Kind(_ROLLING, "weighted_perplexity", False),
    "bits_per_byte": Kind(_ROLLING, "bits_per_byte", False),
}
DEFAULTS = {
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
_EXACT_MATCH = {
    "ignore_case": bool,
    "ignore_punctuation": bool,
    "ignore_numbers": bool,
    "regexes_to_ignore": list,
}


# --- What a task file says -----------------------------------------------------------------------


def metrics(entries: list | None, output_type: str, path: str) -> list[Metric]:
    """The metrics of a metric_list, by default those of the output type. Raises UserError."""
    if not entries:
        return [Metric(n, KINDS[n].higher_is_better, {}) for n in DEFAULTS[output_type]]
    out = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str):
            raise UserError(
                f"{path}: metric_list holds {describe(entry)}; each entry has to be like "
                '{"metric": "acc"}.'
            )
        out.append(_metric(dict(entry), output_type, path))
    if twice := [n for n, k in Counter(m.name for m in out).items() if k > 1]:
        raise UserError(f"{path}: metric_list has {twice[0]!r} twice. Remove one.")
    return out


def _metric(entry: dict[str, Any], output_type: str, path: str) -> Metric:
    name = entry.pop("metric")
    own = [n for n, kind in KINDS.items() if output_type in kind.output_types]
    if name not in own:
        raise UserError(
            f"{path}: the metric {name!r} is not supported for output_type {output_type!r}; "
            f"supported: {', '.join(own)}."
        )
    kind = KINDS[name]
    aggregation = entry.pop("aggregation", None) or kind.aggregation
    if aggregation != kind.aggregation:
        raise UserError(
            f"{path}: the aggregation of {name!r} is {aggregation!r}; supported: "
            f"{kind.aggregation!r}."
        )
    higher = entry.pop("higher_is_better", None)
    if not isinstance(higher, (bool, type(None))):
        raise UserError(f"{path}: higher_is_better of {name!r} has to be true or false.")
    allowed = _EXACT_MATCH if (name, output_type) == ("exact_match", "generate_until") else {}
    for key, value in entry.items():
        if key not in allowed:
            raise UserError(
                f"{path}: the metric {name!r} has the option {key!r}; supported: "
                f"{', '.join(['aggregation', 'higher_is_better', *allowed])}."
            )
        if not isinstance(value, allowed[key]):
            raise UserError(f"{path}: {key} of {name!r} is {describe(value)}.")
    for pattern in entry.get("regexes_to_ignore", ()):
        _compiled(pattern, "regexes_to_ignore", path)
    return Metric(name, kind.higher_is_better if higher is None else higher, entry)


def filters(entries: list | None, repeats: int, path: str) -> dict[str, list[Filter]]:
    """{name: filters in turn} of a filter_list, by default the first answer. Raises UserError."""
    if not entries:
        return {NO_FILTER: [_take_first]}
    out: dict[str, list[Filter]] = {}
    for entry in entries:
        steps = entry.get("filter") if isinstance(entry, dict) else None
        if not isinstance(steps, list) or not isinstance(entry.get("name"), str):
            raise UserError(
                f"{path}: filter_list holds {describe(entry)}; each entry has to be like "
                '{"name": "first", "filter": [{"function": "take_first"}]}.'
            )
        pipeline = [_filter(step, path) for step in steps]
        if not steps or steps[-1]["function"] != "take_first":
            raise UserError(
                f"{path}: the filter {entry['name']!r} ends with several answers. Let its last "
                'function be {"function": "take_first"}.'
            )
        for step in steps:
            if step["function"] == "take_first_k" and step["k"] > repeats:
                raise UserError(
                    f"{path}: take_first_k has k={step['k']}, but repeats is {repeats}. Raise "
                    "repeats, or lower k."
                )
        out[entry["name"]] = pipeline
    return out


def _filter(step: Any, path: str) -> Filter:
    function = step.get("function") if isinstance(step, dict) else None
    if function not in _FILTERS:
        raise UserError(
            f"{path}: the filter function {function!r} is not supported. "
            f"{config_lib.nearest(str(function), _FILTERS)}"
        )
    make, allowed = _FILTERS[function]
    options = {key: value for key, value in step.items() if key != "function"}
    for key, value in options.items():
        if key not in allowed or not isinstance(value, allowed[key]):
            raise UserError(
                f"{path}: the filter function {function!r} has {key}={value!r}; its options: "
                f"{', '.join(allowed) or 'none'}."
            )
    if function == "take_first_k" and options.get("k", 0) < 1:
        raise UserError(f"{path}: take_first_k needs k, a number of answers of at least 1.")
    if "regex_pattern" in options:
        _compiled(options["regex_pattern"], "regex_pattern", path)
    return make(**options)


def _compiled(pattern: Any, key: str, path: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as e:
        raise UserError(f"{path}: {key} has {pattern!r}, which is no regex ({e}).") from None


# --- Filters -------------------------------------------------------------------------------------


def _take_first(answers: list[str]) -> str:
    return answers[0]


def _regex(
    regex_pattern: str = r"#### (\-?[0-9\.\,]+)", group_select: int = 0, fallback: str = "[invalid]"
) -> Filter:
    """What the group_select-th match has in its first group that is not empty."""
    regex = re.compile(regex_pattern)

    def of(answer: str) -> str:
        matches = regex.findall(answer)
        if not -len(matches) <= group_select < len(matches):
            return fallback
        match = matches[group_select]
        if isinstance(match, tuple):
            match = next((group for group in match if group), None)
        return fallback if match is None else match.strip()

    return lambda answers: [*map(of, answers)]


def _each(change: Callable[[str], str]) -> tuple[Callable[..., Filter], dict[str, Any]]:
    return lambda: lambda answers: [*map(change, answers)], {}


_FILTERS: dict[str, tuple[Callable[..., Filter], dict[str, Any]]] = {
    "take_first": (lambda: _take_first, {}),
    "take_first_k": (lambda k: lambda answers: answers[:k], {"k": int}),
    "majority_vote": (lambda: lambda answers: [Counter(answers).most_common(1)[0][0]], {}),
    "regex": (_regex, {"regex_pattern": str, "group_select": int, "fallback": str}),
    "remove_whitespace": _each(lambda text: text.removeprefix(" ")),
    "lowercase": _each(str.lower),
    "uppercase": _each(str.upper),
}


def filtered(answers: list[str], pipeline: Sequence[Filter]) -> str:
    """The one answer that the filters in turn leave."""
    value: Any = answers
    for step in pipeline:
        value = step(value)
    return value


# --- Metrics -------------------------------------------------------------------------------------


def of_choices(
    log_ps: Sequence[float], greedy: Sequence[bool], choices: Sequence[str], gold: Sequence[int]
) -> dict[str, float]:
    """acc, acc_norm and exact_match of one document. gold: the indices of the right choices.

    acc_norm divides each log-likelihood by the number of characters of its choice. Of equal ones
    the first counts.
    """
    lengths = np.array([len(choice) for choice in choices])
    normed = int(np.argmax(np.array(log_ps) / lengths))
    return {
        "acc": float(int(np.argmax(log_ps)) in gold),
        "acc_norm": float(normed in gold),
        "exact_match": float(any(greedy[i] for i in gold)),
    }


def exact_match(answer: str, targets: Sequence[str], options: Mapping[str, Any]) -> float:
    """1 if the answer equals one of the targets, after both were changed as the options say."""

    def changed(text: str) -> str:
        for pattern in options.get("regexes_to_ignore", ()):
            text = re.sub(pattern, "", text)
        if options.get("ignore_case"):
            text = text.lower()
        if options.get("ignore_punctuation"):
            text = text.translate(_PUNCTUATION)
        return text.translate(_DIGITS) if options.get("ignore_numbers") else text

    return float(changed(answer) in {changed(target) for target in targets})


def n_words(text: str) -> int:
    """The number of words of a text, as the harness counts them for word_perplexity."""
    return len(re.split(r"\s+", text))


def aggregated(metric: str, items: Sequence[Any]) -> tuple[float, float | None]:
    """(value, standard error or None) of a metric from those of all documents.

    items: numbers; log-likelihoods for perplexity; (log-likelihood, weight) for the metrics of
    rolling; (answer, reference) for bleu and chrf. The standard error of a mean is the sample
    standard deviation over sqrt(n); that of perplexity follows from that of its logarithm. The
    others have none, as in the harness for metrics of weighted documents.
    """
    aggregation, n = KINDS[metric].aggregation, len(items)
    if aggregation in ("bleu", "chrf"):
        candidates, references = zip(*items)
        return text_metrics.compare([metric], candidates, references)[metric], None
    if aggregation in ("weighted_perplexity", "bits_per_byte"):
        log_p, weight = np.sum(np.array(items, float), axis=0)
        nats = -log_p / max(weight, 1.0)
        return (nats / math.log(2) if aggregation == "bits_per_byte" else _exp(nats)), None
    values = np.array(items, float)
    mean = float(values.mean())
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    if aggregation == "perplexity":
        value = _exp(-mean)
        return value, None if error is None else value * error
    return mean, error


def _exp(x: float) -> float:
    """e^x; inf where it is too large for a float."""
    return math.exp(x) if x < 700 else math.inf
