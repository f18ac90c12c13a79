"""Evaluators. config.evals.NAME.kind names the module; its `build` gives one."""

import importlib
import pathlib
from typing import Any, Protocol

from bigjax import config as config_lib
from bigjax.errors import UserError
from bigjax.evals.context import Context


class Evaluator(Protocol):
    """Measures a model; it may have `metrics`, the names that it gives, where they are known."""

    def __call__(self, params: Any, extras: Any, step: int) -> dict[str, float]:
        """{metric: value} of the model at `step`; {} for one that only writes or prints."""


def build(name: str, entry: Any, context: Context) -> Evaluator:
    """The evaluator of an entry of config.evals. context: see Context."""
    have = sorted(
        p.stem
        for p in pathlib.Path(__file__).parent.glob("*.py")
        if p.stem[0] != "_" and p.stem != "context"
    )
    if entry.kind not in have:
        raise UserError(
            f"evals.{name}.kind is {entry.kind!r}. {config_lib.nearest(entry.kind, have)}"
        )
    return importlib.import_module(f"bigjax.evals.{entry.kind}").build(name, entry, context)
