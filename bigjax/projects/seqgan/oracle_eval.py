"""The likelihood of generated texts under the oracle, and of its texts under the generator.

Neither is enough alone: a generator that always writes the same good text has the best NLL_oracle,
and one with little knowledge but calibrated probabilities has a good NLL_test.
https://arxiv.org/abs/1811.02549 shows why to compare both at several temperatures.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import POSITIVE, at_least
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.layers.sampling import categorical
from bigjax.parallel import sharding
from bigjax.projects.seqgan.gan import empty_context, sample_texts, shift_right

TEXTS = 10_000
SAMPLE_ROWS = 512  # texts per batch: their logits stay in the cache


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "test"
    batches: int = 0  # batches of generated texts; 0 = 10,000 texts
    temperatures: tuple[float, ...] = ()  # in addition to 1

    RANGES = {"batches": at_least(0), "temperatures": POSITIVE}


def build(name: str, options: Config, context: Context):
    """The evaluator.

    Metrics, in nats per token: nll_oracle, of 10,000 generated texts under the oracle; nll_test, of
    the split under the generator. At other temperatures than 1: nll_oracle_0.8 and so on.
    """
    if not hasattr(context.corpus, "oracle"):
        kind = context.config.evals[name].kind
        raise UserError(f"evals.{name}.kind={kind!r} needs task.name='seqgan.oracle'.")
    gan, corpus = context.task.gan, context.corpus
    batch_size = context.config.train.batch_size
    rows_per_batch = -(-SAMPLE_ROWS // batch_size) * batch_size  # the rows divide over the devices
    data = corpus.split(options.split, batch_size=rows_per_batch, shuffle=False)
    condition = empty_context(rows_per_batch)
    n = options.batches or -(-TEXTS // rows_per_batch)

    @functools.partial(jax.jit, static_argnames="temperature")
    def oracle_nll(params, key, temperature):
        choose = functools.partial(categorical, temperature=temperature)
        tokens = sample_texts(gan, params, condition, key, choose=choose)
        tokens = sharding.constrain(tokens, "batch", "length")
        logits = corpus.oracle.logits(
            corpus.oracle_params, condition, shift_right(gan, tokens), None
        )
        return losses.cross_entropy(logits, tokens, jnp.ones(tokens.shape))

    @functools.partial(jax.jit, static_argnames="temperature")
    def test_nll(params, batch, temperature):
        inputs = shift_right(gan, batch["tokens"])
        logits = gan.logits(params, condition, inputs, None) / temperature
        return losses.cross_entropy(logits, batch["tokens"], batch["weights"])

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        params, out = params["generator"], {}
        key = jax.random.fold_in(jax.random.key(context.config.seed), step)
        sizes = rows_per_batch, data.n_batches
        batches = list(sharding.device_batches(context.mesh, data, *sizes))
        for t in (1.0, *options.temperatures):
            parts = {
                "nll_oracle": [oracle_nll(params, jax.random.fold_in(key, i), t) for i in range(n)],
                "nll_test": [test_nll(params, batch, t) for batch in batches],
            }
            for k, sums in parts.items():
                total, weight = (sum(map(float, x)) for x in zip(*sums))
                out[k if t == 1 else f"{k}_{t:g}"] = total / weight
        return out

    names = ("nll_oracle", "nll_test")
    evaluate.metrics = (*names, *(f"{k}_{t:g}" for t in options.temperatures for k in names))
    return evaluate
