"""Predict the text of a recording (https://arxiv.org/abs/2212.04356)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import SHARE, at_least
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.layers.audio import spec_augment
from bigjax.parallel.sharding import constrain
from bigjax.tasks import Task, _encoder_decoder, array_shapes, data_module, family_for
from bigjax.tasks._encoder_decoder import NEEDS, Source, encoder_decoder_task

DATA, EVALUATION = "audio", "loss"  # in a config that is generated for this task


@dataclasses.dataclass(frozen=True)
class Config(_encoder_decoder.Config):
    # SpecAugment (https://arxiv.org/abs/1904.08779): masks of features, with the mean of each
    time_masks: int = 0
    time_width: int = 40  # frames that one hides, at most
    time_share: float = 1.0  # and at most this share of a recording's frames
    freq_masks: int = 0
    freq_width: int = 10  # features
    # Share of CTC on the encoder's output in the training loss (https://arxiv.org/abs/1609.06773):
    # alignment is learned sooner. It needs the logits of all places, float32 [B, S, vocab_size]
    ctc_weight: float = 0.0
    language: str = ""  # of the texts, such as "en", for a tokenizer with tokens of languages
    translate: bool = False  # the texts are English, whatever the language

    RANGES = {
        **_encoder_decoder.Config.RANGES,
        **dict.fromkeys(("time_masks", "freq_masks"), at_least(0)),
        **dict.fromkeys(("time_width", "freq_width"), at_least(0)),
        **dict.fromkeys(("time_share", "ctc_weight"), SHARE),
    }


def build(config, options: Config) -> Task:
    """Batches: see data.audio.batches.AudioBatches. Targets begin with the tokens of `prefix`, on
    which the model is trained too."""
    family, c = family_for(
        config, "a model of audio, such as model.name='whisper'", needs=(*NEEDS, "features")
    )
    source = data_module(config, "load_audio", "audio")
    d, frames = config.data, frames_of(config.data, c)

    def load_data(log, tokenizer, splits):
        if frames < 2 * c.n_positions:
            log(
                f"data: training reads {d.max_seconds:g} seconds (data.max_seconds), and a trained "
                f"model always {c.max_seconds:g} (model.max_seconds), padded with silence. Unless "
                "it has learned from such, set both to the same."
            )
        return source.load_audio(
            d,
            tokenizer=tokenizer,
            prefix=lambda t: prefix(t, c.start_id, options),
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
        )

    def read(batch, rng, train):
        mel = family.features(c, batch["audio"])[:, :frames]
        if train and (options.time_masks or options.freq_masks):
            mel = spec_augment(
                mel,
                rng,
                time_masks=options.time_masks,
                time_width=options.time_width,
                freq_masks=options.freq_masks,
                freq_width=options.freq_width,
                lengths_B=jnp.minimum(batch["audio_len"] // c.hop, frames),
                max_share=options.time_share,
            )
        return mel, {}

    def shapes(batch_size):
        audio = (batch_size, round(d.max_seconds * d.sample_rate))
        return {
            "audio": jax.ShapeDtypeStruct(audio, jnp.int16),
            **array_shapes({"audio_len": audio[:1], "example": audio[:1]}, {}),
        }

    def ctc(out, batch):
        if not options.ctc_weight:
            return {}
        if getattr(out, "source", None) is None:
            raise UserError(
                f"task.ctc_weight={options.ctc_weight}: the Model of model.name="
                f"{config.model.name!r} returns no `source`, the output layer at each place of the "
                "audio. Set it to 0, or return ModelOutput(..., source=...)."
            )
        logits = constrain(out.source.product(), "batch", "length", "act_vocab")
        lengths = -(-jnp.minimum(batch["audio_len"] // c.hop, frames) // 2)
        return {"ctc": losses.ctc(logits, lengths, batch["targets"], batch["weights"], c.start_id)}

    example = jnp.zeros((1, 2, c.n_mels))
    return encoder_decoder_task(
        config,
        options,
        (family, c),
        Source(example, "", read, shapes, ctc, options.ctc_weight),
        d.seq_len,
        load_data,
        unit="audio_seconds",
        units_per_example=d.max_seconds,
        attention_lengths={"half of the frames of data.max_seconds": -(-frames // 2)}
        | {"data.seq_len": d.seq_len},
        flops_per_example=family.flops_per_pair(c, frames, d.seq_len),
    )


def frames_of(data: Any, c: Any) -> int:
    """The number of frames of features that the model reads of data.max_seconds.

    Raises UserError if the data have another rate than the model, or longer recordings.
    """
    if data.sample_rate != c.sample_rate:
        raise UserError(
            f"data.sample_rate={data.sample_rate} is not model.sample_rate={c.sample_rate}. Set "
            "both to the same: recordings are resampled to it."
        )
    if data.max_seconds > c.max_seconds:
        raise UserError(
            f"data.max_seconds={data.max_seconds:g} is more than model.max_seconds="
            f"{c.max_seconds:g}. Lower it, or raise that of the model."
        )
    return min(round(data.max_seconds * data.sample_rate) // c.hop, 2 * c.n_positions)


def prefix(tokenizer: Any, start_id: int, options: Config) -> list[int]:
    """The tokens between start_id and a text: language, task, and that there are no timestamps; []
    for a tokenizer without such tokens. Raises UserError for an unknown language."""
    if not hasattr(tokenizer, "start"):
        if options.language or options.translate:
            raise UserError(
                f"task.language={options.language!r} and task.translate={options.translate} need "
                f"a tokenizer with tokens for them, such as Whisper's; this one ({tokenizer.name}) "
                "has none. Remove both."
            )
        return []
    task = "translate" if options.translate else "transcribe"
    start, *rest = tokenizer.start(options.language, task)
    if start != start_id:
        raise UserError(
            f"model.start_id={start_id} is not the tokenizer's token before a text, {start}: set "
            "it to that."
        )
    return rest
