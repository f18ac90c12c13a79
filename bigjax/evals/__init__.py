"""Evaluators. config.evals.NAME.kind names a module, whose build(name, options, context) makes an
Evaluator from its Config."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any, NamedTuple, Protocol

from bigjax import modules
from bigjax.errors import UserError
from bigjax.tasks import check_call, described


class Context(NamedTuple):
    """What an evaluator is built from."""

    config: Any
    task: Any
    corpus: Any  # bigjax.data's: tokenizer and splits
    mesh: Any
    log: Callable[[str], None]
    folder: Any  # the run's; evaluators write to folder/evals/NAME
    frozen: dict[str, Any]  # of the task
    report: Callable[[str], None] = lambda text: None  # for long texts, which only `eval` prints
    # `eval` collects here which files could not be written, since it prints the metrics anyway.
    # None, as in training: a file that cannot be written is an error.
    unwritten: list[str] | None = None

    def write(self, name: str, write: Callable[[Any], None]) -> str:
        """Calls write(folder) with WORKDIR/evals/NAME. Returns a line with that path, or '' if it
        could not be written. Raises what `write` raises, unless `unwritten` collects it."""
        folder = self.folder / "evals" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
        except (OSError, UserError) as e:
            cause = e.__cause__ if isinstance(e, UserError) else e
            if self.unwritten is None or not isinstance(cause, OSError):
                raise
            self.unwritten.append(f"Not written: {folder} ({cause.strerror or cause})")
            return ""
        return f"\nFiles: {folder}"


class Evaluator(Protocol):
    """Evaluates a model. An optional attribute `metrics` has the names of its metrics."""

    def __call__(self, params: Any, extras: Any, step: int) -> dict[str, float]:
        """{metric: value} of the model at `step`; {} if it only writes or prints."""


def build(name: str, context: Context) -> Evaluator:
    """The evaluator of config.evals.NAME. Raises UserError, also when it is called, for a module
    that does not do what an Evaluator requires."""
    config, section = context.config, f"evals.{name}"
    module, what = modules.of(config, section), f"config.{section}.kind={config.evals[name].kind!r}"
    check_call(module.build, "name, options, context", f"{what}: build")
    evaluator = module.build(name, modules.options(config, section), context)
    if not callable(evaluator):
        raise UserError(
            f"{what}: build returned {described(evaluator)}; it must return a function "
            "(params, extras, step) -> {metric: number}."
        )
    check_call(evaluator, "params, extras, step", f"{what}: its evaluator")

    @functools.wraps(evaluator)
    def checked(params, extras, step):
        metrics = evaluator(params, extras, step)
        if not isinstance(metrics, Mapping) or not all(map(_is_number, metrics.values())):
            raise UserError(
                f"{what}: its evaluator returned {described(metrics)}; it must return "
                "{metric: number}."
            )
        return {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}

    return checked


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or getattr(x, "shape", None) == ()


def evenly_spaced(n: int, most: int) -> list[int]:
    """The indices of at most `most` of n examples, from the first to the last."""
    return [i * n // most for i in range(most)] if most < n else [*range(n)]


def derive(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics, with perplexity in place of nll and bits per byte in place of nats per byte."""
    out = dict(metrics)
    if "nll" in out:
        out["perplexity"] = math.exp(min(out.pop("nll"), 700.0))
    if "nats_per_byte" in out:
        out["bits_per_byte"] = out.pop("nats_per_byte") / math.log(2)
    return out
