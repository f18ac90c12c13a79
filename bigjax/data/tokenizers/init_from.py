"""The tokenizer of config.init_from: train/init_from.py replaces this kind by the source's."""

from typing import Any

from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import Tokenizer, Training
from bigjax.errors import UserError


def build(options: Config, training: Training) -> Tokenizer:
    del options, training
    raise UserError(
        "data.tokenizer.kind='init_from' needs config.init_from, a run's work folder or a Hugging "
        "Face folder. Set it, or set data.tokenizer.kind to another kind."
    )


def load(folder: Any) -> Tokenizer:
    raise UserError(f"{folder} was not saved by bigjax. Restore it from the run.")
