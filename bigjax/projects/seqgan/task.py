"""The task of adversarial training, whose steps are rounds of updates."""

from collections.abc import Callable
import dataclasses

import jax

from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.projects.seqgan import train_step
from bigjax.projects.seqgan.gan import GAN, shift_right
from bigjax.tasks import Task, array_shapes, in_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialTask(Task):
    gan: GAN


def check_batch_size(config) -> None:
    """Raises UserError for a batch that cannot be halved."""
    if config.train.batch_size % 2:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be even: half of the texts in an "
            "update of the discriminator are real."
        )


def adversarial_task(
    c,
    gan: GAN,
    networks: dict,
    examples: dict,
    context_row: dict,
    load_data: Callable,
    **fields,
) -> Task:
    """The Task that trains a GAN.

    c: the model's Config. networks: the Flax modules 'generator' and 'discriminator'; examples:
    their arguments, for one row. context_row: the arrays of a batch besides the texts, for one row.
    fields: other fields of Task.
    """

    def init(rng):
        params = params_lib.unbox(
            {
                name: networks[name].init(key, *examples[name])["params"]
                for name, key in zip(("generator", "discriminator"), jax.random.split(rng))
            }
        )
        return {"params": params, **extras_of(params)}

    def extras_of(params, extras=None):
        del extras
        return {"rollout": params["generator"], "reference": params["generator"]}

    def loss(params, extras, frozen, batch, rng, train):
        del frozen
        tokens, context = batch["tokens"], gan.context(batch)
        inputs = batch.get("inputs", shift_right(gan, tokens))
        nll = gan.loss(
            params["generator"], context, inputs, tokens, batch["weights"], rng if train else None
        )
        return nll, ({"nll": nll}, extras)

    def batch_shapes(batch_size, step):
        phase, n, _ = gan.options.round(step)
        text = {"tokens": (1, gan.length)}, {"weights": (1, gan.length)}
        return {
            phase: {
                k: jax.ShapeDtypeStruct((batch_size, n, *x.shape[1:]), x.dtype)
                for k, x in {**array_shapes(*text), **context_row}.items()
            }
        }

    axes = {
        name: params_lib.logical_axes(
            jax.eval_shape(network.init, jax.random.key(0), *examples[name])["params"]
        )
        for name, network in networks.items()
    }

    def rate_key(metric, step):
        if metric.startswith("discriminator"):
            return "task.discriminator_learning_rate"
        phase, _, _ = gan.options.round(step)
        return "optim.learning_rate" if phase == "mle" else "task.adversarial_learning_rate"

    def describe(steps, start):
        return f"{steps} rounds ({gan.options.describe(steps)}) from {start + 1}, updates"

    task = AdversarialTask(
        init=init,
        axes={"params": axes, **extras_of(axes)},
        loss=loss,
        load_data=load_data,
        batch_shapes=batch_shapes,
        model=networks["generator"],
        model_config=c,
        extras_of=extras_of,
        make_step=lambda config, params: train_step.make_step(task, config, params),
        phases=lambda steps: [(phase, first) for phase, first, _ in gan.options.phases(steps)],
        step_keys=("optim.*",),
        describe=describe,
        rate_key=rate_key,
        gan=gan,
        **in_tokens(gan.length),
        **fields,
    )
    return task
