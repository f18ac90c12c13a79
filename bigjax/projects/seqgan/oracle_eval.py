"""How likely an oracle finds the generator's texts, and the generator the oracle's.

Neither says much alone: a generator that writes one good text for ever has the best NLL_oracle,
one that knows nothing but is unsure of it a good NLL_test. https://arxiv.org/abs/1811.02549 shows
why to compare them at several temperatures.
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
from bigjax.projects.seqgan.gan import shift_right, write

TEXTS = 10_000
AT_ONCE = 512  # texts: so few that their logits stay in the cache


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "test"
    batches: int = 0  # of the generator's texts; 0 = 10,000 texts
    temperatures: tuple[float, ...] = ()  # besides 1

    RANGES = {"batches": at_least(0), "temperatures": POSITIVE}


def build(name: str, options: Config, context: Context):
    """The evaluator.

    nll_oracle: of 10,000 texts of the generator under the oracle; nll_test: of the split under the
    generator; nats a token. Of other temperatures than 1 as nll_oracle_0.8 and so on.
    """
    if not hasattr(context.corpus, "oracle"):
        kind = context.config.evals[name].kind
        raise UserError(f"evals.{name}.kind={kind!r} needs task.name='seqgan.oracle'.")
    p, corpus = context.task.gan, context.corpus
    batch_size = context.config.train.batch_size
    at_once = -(-AT_ONCE // batch_size) * batch_size  # so that rows divide over the devices
    data = corpus.split(options.split, batch_size=at_once)
    rows = sharding.local_rows(context.mesh, at_once)
    n = options.batches or -(-TEXTS // at_once)

    @functools.partial(jax.jit, static_argnames="temperature")
    def written(params, key, temperature):
        tokens = write(
            p, params, (), key, at_once, functools.partial(categorical, temperature=temperature)
        )
        tokens = sharding.constrain(tokens, "batch", "length")
        logits = corpus.oracle.logits(corpus.oracle_params, (), shift_right(p, tokens), None)
        return losses.cross_entropy(logits, tokens, jnp.ones(tokens.shape))

    @functools.partial(jax.jit, static_argnames="temperature")
    def held_out(params, batch, temperature):
        logits = p.logits(params, (), shift_right(p, batch["tokens"]), None) / temperature
        return losses.cross_entropy(logits, batch["tokens"], batch["weights"])

    def evaluate(params, extras, step: int) -> dict[str, float]:
        del extras
        params, out = params["generator"], {}
        key = jax.random.fold_in(jax.random.key(context.config.seed), step)
        batches = [
            sharding.put_batch(context.mesh, data.batch_at(i, rows), rows, at_once)
            for i in range(data.n_batches)
        ]
        for t in (1.0, *options.temperatures):
            of = {
                "nll_oracle": [written(params, jax.random.fold_in(key, i), t) for i in range(n)],
                "nll_test": [held_out(params, batch, t) for batch in batches],
            }
            for k, parts in of.items():
                total, weight = (sum(map(float, x)) for x in zip(*parts))
                out[k if t == 1 else f"{k}_{t:g}"] = total / weight
        return out

    names = ("nll_oracle", "nll_test")
    evaluate.metrics = (*names, *(f"{k}_{t:g}" for t in options.temperatures for k in names))
    return evaluate
