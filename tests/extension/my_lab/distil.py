"""A task with a frozen teacher: the probabilities that another run's model gives to each token."""

import dataclasses

import jax

from bigjax import tasks
from bigjax.bounds import POSITIVE
from bigjax.tasks import causal_lm
from bigjax.train import workdir


class FromTeacher:
    """config.task: cross-entropy with the teacher's probabilities."""

    DATA, EVALUATION = "text", "loss"

    @dataclasses.dataclass(frozen=True)
    class Config:
        teacher: str = ""  # a run's work folder, of the same tokenizer
        temperature: float = 2.0  # of both (https://arxiv.org/abs/1503.02531)

        RANGES = {"temperature": POSITIVE}
        PATHS = ("teacher",)
        MAY_CHANGE = ("teacher",)  # what it holds has a fingerprint

    @staticmethod
    def build(config, options):
        student = causal_lm.build(config, causal_lm.Config())
        teacher = causal_lm.build(workdir.read_config(options.teacher), causal_lm.Config())

        def logits(task, params, batch, rng):
            given = batch["inputs"], batch.get("positions"), batch.get("segment_ids")
            out, _ = task.model.apply({"params": params}, *given, rng=rng)
            return out / options.temperature

        def loss(params, extras, frozen, batch, rng, train):
            want = jax.nn.softmax(logits(teacher, frozen["teacher"], batch, None))
            own = jax.nn.log_softmax(logits(student, params, batch, rng if train else None))
            total = -(want * own).sum(-1) * batch["weights"]
            _, (metrics, _) = student.loss(params, extras, {}, batch, rng, False)
            return (total.sum(), batch["weights"].sum()), (metrics, extras)

        part = tasks.Frozen(
            lambda rng: teacher.init(rng)["params"], teacher.axes["params"], options.teacher
        )
        return dataclasses.replace(student, loss=loss, frozen={"teacher": part})
