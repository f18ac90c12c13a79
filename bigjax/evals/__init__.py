"""Evaluators. config.evals.NAME.kind names the module; its `build` gives one.

An evaluator is called as (params, extras, step) and returns {metric: float}.
"""

import importlib
import pathlib

from bigjax import config as config_lib
from bigjax.errors import UserError


def build(name: str, entry, context):
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
