"""Pictures of what a decoder attends to in its source while it writes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import modules
from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.layers import params as params_lib
from bigjax.models import rung
from bigjax.parallel import sharding
from bigjax.report import pyplot, write_figure

_COLUMNS = 2  # of pictures


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    n: int = 4  # examples, evenly spaced in the split

    RANGES = {"n": at_least(1)}


def build(name: str, options: Config, context: Context):
    """Writes WORKDIR/evals/NAME/step_STEP.png: for each example the attention of each token that
    the model writes (rows, by greedy decoding) to the tokens of the source (columns). Has no
    metrics."""
    config, corpus = context.config, context.corpus
    family = modules.of(config, "model")
    decoder = None
    if hasattr(family, "decoder"):
        decoder = family.decoder(context.task.model_config)
    if getattr(decoder, "attention", None) is None or not hasattr(corpus, "inputs"):
        raise UserError(
            f"evals.{name}.kind='alignment' needs a model that attends to a source, such as "
            f"model.name='t5'; model.name is {config.model.name!r}."
        )
    inputs = corpus.inputs(options.split)
    inputs = inputs[:: max(1, len(inputs) // options.n)][: options.n]
    n = min(config.data.get("target_len", decoder.max_len), decoder.max_len)
    on_all = sharding.replicated(context.mesh)
    run = jax.jit(functools.partial(write, decoder, n), out_shardings=(on_all, on_all))

    def evaluate(params, extras, step: int) -> dict[str, float]:
        variables = jax.jit(params_lib.unrolled)({"params": params, **extras})
        tokens, shares = jax.device_get(run(variables, *decoder.context(inputs)))
        if jax.process_index() == 0:
            t = corpus.tokenizer
            pictures = [
                (share, _labels(t, source), _labels(t, row, t.eos_id))
                for share, source, row in zip(shares, inputs, tokens)
            ]
            draw_all = lambda folder: draw(folder / f"step_{step}.png", pictures, step)
            where = context.write(name, draw_all)
            context.log(f"{name}, step {step}{where}")
        return {}

    evaluate.metrics = ()
    return evaluate


def write(decoder, n: int, variables, context, first_B) -> tuple[jax.Array, jax.Array]:
    """n greedy tokens of each row, int32 [B, n], and the attention of the step that wrote each,
    float32 [B, n, S]."""
    slots = min(rung(n), decoder.max_len)

    def advance(carry, _):
        state, last = carry
        share = decoder.attention(variables, state, last)
        logits, state = decoder.step(variables, state, last)
        last = logits.argmax(-1).astype(jnp.int32)
        return (state, last), (last, share)

    state = decoder.begin(variables, context, slots)
    _, (tokens, shares) = jax.lax.scan(advance, (state, jnp.asarray(first_B)), None, n)
    return tokens.T, shares.swapaxes(0, 1)


def _labels(tokenizer, ids, end_id: int = -1) -> list[str]:
    """The text of each token, up to the end token."""
    ids = [int(i) for i in ids]
    ids = ids[: ids.index(end_id) + 1] if end_id in ids else ids
    return [tokenizer.decode([i]).replace("\n", "\\n") or "end" for i in ids]


def draw(path, pictures: list[tuple[np.ndarray, list[str], list[str]]], step: int) -> None:
    """pictures: (attention [T, S], at least as large as the labels; source and target labels)."""
    plt = pyplot()
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    width = max(4.0, 0.22 * max(len(source) for _, source, _ in pictures) + 1)
    height = max(2.5, 0.22 * max(len(target) for *_, target in pictures) + 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * width, rows * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(pictures) :]:
        axis.set_axis_off()
    for axis, (share, source, target) in zip(axes.flat, pictures):
        axis.imshow(share[: len(target), : len(source)], cmap="gray_r", vmin=0, vmax=1)
        plain = dict(parse_math=False, fontsize=7, family="monospace")
        axis.set_xticks(range(len(source)), source, rotation="vertical", **plain)
        axis.set_yticks(range(len(target)), target, **plain)
        axis.xaxis.tick_top()
    figure.suptitle(f"step {step}: attention of what is written (rows) to the source (columns)")
    write_figure(figure, path, dpi=110)
