"""What an evaluator is built from."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple


class Context(NamedTuple):
    config: Any
    task: Any
    corpus: Any  # bigjax.data's: tokenizer and splits
    mesh: Any
    log: Callable[[str], None]
    folder: Any  # the run's; evaluators write to folder/evals/NAME
    report: Callable[[str], None] = lambda text: None  # takes long texts: printed by `eval` alone


def derive(metrics: dict[str, float]) -> dict[str, float]:
    """Adds what follows from a mean negative log-likelihood: perplexity, bits per byte."""
    out = dict(metrics)
    if "nll" in out:
        out["perplexity"] = math.exp(min(out.pop("nll"), 700.0))
    if "nats_per_byte" in out:
        out["bits_per_byte"] = out.pop("nats_per_byte") / math.log(2)
    return out
