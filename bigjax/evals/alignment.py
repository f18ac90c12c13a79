"""Pictures of what a decoder attends to in its source while it writes."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import modules
from bigjax.bounds import at_least
from bigjax.errors import UserError
from bigjax.evals import Context, evenly_spaced
from bigjax.layers import params as params_lib
from bigjax.models import rung
from bigjax.parallel import sharding
from bigjax.report import pyplot, write_figure

_COLUMNS = 2  # of pictures
_CELL = 0.22  # inches of a token
_PLAIN = dict(parse_math=False, fontsize=7, family="monospace")  # of labels


@dataclasses.dataclass(frozen=True)
class Config:
    split: str = "valid"
    n: int = 4  # examples, evenly spaced in the split

    RANGES = {"n": at_least(1)}


class Spectrogram(NamedTuple):
    """mel: [n_mels, frames], of this many seconds."""

    mel: np.ndarray
    seconds: float


class Picture(NamedTuple):
    """attention: float [T, S], at least as large as the source, tokens or a recording, and the
    tokens of the target."""

    attention: np.ndarray
    source: list[str] | Spectrogram
    target: list[str]


def build(name: str, options: Config, context: Context):
    """Writes WORKDIR/evals/NAME/step_STEP.png: for each example the attention of each token that
    the model writes (rows, by greedy decoding) to the tokens of the source (columns), or to the
    times of a recording, below its spectrogram. Has no metrics."""
    config, corpus = context.config, context.corpus
    family = modules.of(config, "model")
    decoder = None
    if hasattr(family, "decoder"):
        decoder = context.task.decoder(family.decoder(context.task.model_config))
    if getattr(decoder, "attention", None) is None or not hasattr(corpus, "inputs"):
        raise UserError(
            f"evals.{name}.kind='alignment' needs a model that attends to a source, such as "
            f"model.name='t5'; model.name is {config.model.name!r}."
        )
    inputs = corpus.inputs(options.split)
    inputs = [inputs[i] for i in evenly_spaced(len(inputs), options.n)]
    inputs = [source for source in inputs if len(source)]  # recordings that can be read
    if not inputs:
        raise UserError(
            f"evals.{name}: none of the {options.n} examples of data.{options.split} can be read. "
            f"Remove them, or raise evals.{name}.n."
        )
    of_source, first = decoder.context(inputs)
    n = min(config.data.get("target_len", decoder.max_len), decoder.max_len)
    on_all = sharding.replicated(context.mesh)
    run = jax.jit(functools.partial(write, decoder, n), out_shardings=(on_all, on_all))
    t = corpus.tokenizer
    if hasattr(family, "features"):
        sources = spectrograms(family, context.task.model_config, of_source, inputs)
    else:
        sources = [_labels(t, source) for source in inputs]

    def evaluate(params, extras, step: int) -> dict[str, float]:
        variables = context.task.variables(params, extras, context.frozen)
        variables = jax.jit(params_lib.unrolled)(variables)
        tokens, shares = jax.device_get(run(variables, of_source, first))
        if jax.process_index() == 0:
            pictures = [
                Picture(share, source, _labels(t, row, t.eos_id))
                for share, source, row in zip(shares, sources, tokens)
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


def spectrograms(family, c, of_source, inputs) -> list[Spectrogram]:
    """Of recordings int16 [n]. of_source: their context, by a decoder of the family."""
    features = np.asarray(jax.jit(functools.partial(family.features, c))(of_source["audio"]))
    return [
        Spectrogram(mel[: max(1, len(audio) // c.hop)].T, len(audio) / c.sample_rate)
        for mel, audio in zip(features, inputs)
    ]


def draw(path, pictures: list[Picture], step: int) -> None:
    plt = pyplot()
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sizes = np.array([_inches(picture) for picture in pictures]).max(0)
    figure = plt.figure(figsize=tuple(sizes * (columns, rows)), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False)
    for part, picture in zip(parts.flat, pictures):
        if isinstance(picture.source, Spectrogram):
            _draw_recording(part, picture.attention, picture.source, picture.target)
        else:
            _draw_tokens(part, picture.attention, picture.source, picture.target)
    figure.suptitle(f"step {step}: attention of what is written (rows) to the source (columns)")
    write_figure(figure, path, dpi=110)


def _inches(picture: Picture) -> tuple[float, float]:
    """Width and height."""
    height = max(2.5, _CELL * len(picture.target) + 1)
    if isinstance(picture.source, Spectrogram):
        return 5.0, height + 1
    return max(4.0, _CELL * len(picture.source) + 1), height


def _draw_tokens(part, share: np.ndarray, source: list[str], target: list[str]) -> None:
    axis = part.subplots()
    axis.imshow(share[: len(target), : len(source)], cmap="gray_r", vmin=0, vmax=1)
    axis.set_xticks(range(len(source)), source, rotation="vertical", **_PLAIN)
    axis.set_yticks(range(len(target)), target, **_PLAIN)
    axis.xaxis.tick_top()


def _draw_recording(part, share: np.ndarray, source: Spectrogram, target: list[str]) -> None:
    above, below = part.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    mel, seconds = source
    above.imshow(mel, aspect="auto", origin="lower", extent=(0, seconds, 0, len(mel)))
    above.set_ylabel("mel band")
    n = -(-mel.shape[1] // 2)  # positions of the encoder: two frames each
    options = dict(cmap="gray_r", vmin=0, vmax=share[: len(target), :n].max(), aspect="auto")
    extent = (0, seconds, len(target) - 0.5, -0.5)
    below.imshow(share[: len(target), :n], extent=extent, **options)
    below.set_yticks(range(len(target)), target, **_PLAIN)
    below.set_xlabel("seconds")
