"""The task's loss and metrics over a split, in which each example counts once."""

import dataclasses

import jax

from bigjax.bounds import at_least
from bigjax.evals import Context, derive
from bigjax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    batches: int = 0  # 0 = all of the split

    RANGES = {"batches": at_least(0)}


def build(name: str, options: Config, context: Context):
    batch_size = context.config.train.batch_size
    data = context.corpus.split(options.split, batch_size=batch_size, shuffle=False)
    n = min(options.batches or data.n_batches, data.n_batches)

    @jax.jit
    def sums(params, extras, frozen, batch):
        loss, (metrics, _) = context.task.loss(
            params, extras, frozen, batch, jax.random.key(0), False
        )
        return {"loss": loss, **metrics}

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del step
        total = {}
        # The last short batch is padded with rows of weight 0.
        for batch in sharding.device_batches(context.mesh, data, batch_size, n):
            for k, pair in jax.device_get(sums(params, extras, context.frozen, batch)).items():
                s, w = total.get(k, (0.0, 0.0))
                total[k] = s + float(pair[0]), w + float(pair[1])
        return derive({k: s / max(w, 1e-9) for k, (s, w) in total.items()})

    return evaluate
