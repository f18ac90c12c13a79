"""A classifier that was trained here as a reward of texts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigjax import data as data_lib
from bigjax.data.labelled_batches import LabelledBatches
from bigjax.errors import UserError
from bigjax.infer import predict
from bigjax.tasks import Reward
from bigjax.train import load
from bigjax.train import workdir as workdir_lib

_ROWS = 32  # of a batch, on each device


class TextScores:
    """Scores of completions by a run with task.name='classify'; its latest step.

    Loading it makes a mesh of all devices the current one.
    """

    def __init__(self, folder: str, reward: Reward, key: str) -> None:
        """key: of the reward, for messages. Raises UserError for a label that the run does not
        have, or none."""
        config = workdir_lib.read_config(folder)
        with config.unlocked():
            config.data.update(truncate=True, packing=False)
            config.mesh.update(dict.fromkeys(config.mesh, 1) | {"data": -1})
        self._reward, labels = reward, tuple(config.task.labels)
        self._is_number = config.task.kind == "regress"
        if self._is_number and reward.label:
            raise UserError(
                f"config.{key}.label={reward.label!r}: {folder!r} predicts a number, without "
                "labels. Set it to ''."
            )
        if not self._is_number and reward.label not in labels:
            raise UserError(
                f"config.{key}.label is {reward.label!r}; the labels of {folder!r} are "
                f"{', '.join(map(repr, labels))}. Set it to the one that is rewarded."
            )
        self._label = 0 if self._is_number else labels.index(reward.label)
        self._loaded = load.load(folder, config, None, None)
        place = workdir_lib.existing(folder) / "tokenizer"
        self._tokenizer = data_lib.load_tokenizer(place, config.python_path)
        self._pairs = bool(config.data.columns.get("pair", ""))
        self._outputs = predict.make_outputs(self._loaded.task, self._loaded.mesh, labelled=False)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> np.ndarray:
        """float32 [n]: the probability or the log-odds of the label, or the number."""
        rows = [self._row(*pair) for pair in zip(prompts, completions)]
        loaded, data = self._loaded, self._loaded.config.data
        kind = loaded.task.kind
        examples = data_lib.encode_rows(rows, data, kind, self._tokenizer, with_labels=False)
        batches = LabelledBatches(
            examples,
            self._tokenizer.pad_id,
            data.seq_len,
            _ROWS * loaded.mesh.size,
            packing=False,
            shuffle=False,
            name="completions",
        )
        with jax.set_mesh(loaded.mesh):
            outputs, _ = self._outputs(loaded.params, loaded.extras, loaded.frozen, batches)
        scores = np.zeros(len(rows), np.float32)
        for row, output in zip(examples.row, outputs):
            scores[row] = self._score(np.asarray(output, np.float64))
        return scores

    def _row(self, prompt: Any, completion: str) -> dict[str, Any]:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if self._pairs:
            return {"text": text, "pair": completion, "where": "a completion"}
        whole = text + completion if self._reward.reads == "text" else completion
        return {"text": whole, "where": "a completion"}

    def _score(self, output: np.ndarray) -> float:
        if self._is_number:
            return float(output[0])
        others = np.delete(output, self._label)
        odds = output[self._label] - np.logaddexp.reduce(others)
        return float(odds if self._reward.output == "logit" else 1 / (1 + np.exp(-odds)))
