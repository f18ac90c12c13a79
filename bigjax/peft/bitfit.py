"""BitFit (https://arxiv.org/abs/2106.10199): only the model's biases are trained, its own ones."""

import dataclasses
import re

from bigjax.peft import Method, Options, Seen, check_targets


@dataclasses.dataclass(frozen=True)
class Config(Options):
    targets: str = "(^|/)bias$"  # regex over parameter paths


def build(options: Config) -> Method:
    return Method(
        layer=lambda layer: layer.run(),
        trains=lambda path: re.search(options.targets, path) is not None,
        merge=lambda params: params,
        check=lambda seen: _check(options.targets, seen),
    )


def _check(targets: str, seen: Seen) -> None:
    check_targets(targets, seen.axes, "parameter")
