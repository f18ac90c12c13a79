"""A task with a frozen teacher: a student learns its distribution of the next token."""

import dataclasses

from bigjax import tasks
from bigjax.bounds import POSITIVE
from bigjax.layers.output import linear_divergence
from bigjax.tasks import causal_lm


class FromTeacher:
    """config.task: the divergence from the teacher's distributions."""

    DATA, EVALUATION = "text", "loss"

    @dataclasses.dataclass(frozen=True)
    class Config:
        teacher: str = ""  # a run's work folder, of the same tokenizer
        temperature: float = 2.0  # of both (https://arxiv.org/abs/1503.02531)

        RANGES = {"temperature": POSITIVE}
        PATHS = ("teacher",)
        MAY_CHANGE = ("teacher",)  # its parameters have a fingerprint

    @staticmethod
    def build(config, options):
        student = causal_lm.build(config, causal_lm.Config())
        teacher, part = tasks.frozen_run(options.teacher)

        def output_layer(task, variables, batch, rng):
            """The logits unmultiplied, which are never in memory all together."""
            inputs = batch["inputs"], batch.get("positions"), batch.get("segment_ids")
            return task.model.apply(variables, *inputs, rng=rng).linear

        def loss(params, extras, frozen, batch, rng, train):
            divergence = linear_divergence(
                output_layer(student, {"params": params}, batch, rng if train else None),
                output_layer(teacher, frozen["teacher"], batch, None),
                options.temperature,
            )
            weights = batch["weights"]
            _, (metrics, _) = student.loss(params, extras, {}, batch, rng, False)
            return ((divergence * weights).sum(), weights.sum()), (metrics, extras)

        return dataclasses.replace(student, loss=loss, frozen={"teacher": part})
