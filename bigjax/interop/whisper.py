"""Whisper: tensors of transformers' WhisperForConditionalGeneration, and those of models.whisper.

Features of audio are those of all published models; preprocessor_config.json only repeats them.
"""

from collections.abc import Mapping
import json
from typing import Any

from bigjax.errors import UserError
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    Field,
    convolution,
    dense,
    needs_division,
    norm,
    number,
    plain,
    refuse,
    token_id,
)

SAMPLE_RATE, N_FFT, HOP = 16_000, 400, 160
_POSITIONS = number("", "max_source_positions", 1500)


def _put_seconds(config: dict, value: float) -> None:
    _POSITIONS.put(config, round(value * SAMPLE_RATE) // (2 * HOP))


_FIELDS = (
    number("vocab_size", "vocab_size", 51865),
    number("n_mels", "num_mel_bins", 80),
    Field(
        "max_seconds", lambda config: _POSITIONS.get(config) * 2 * HOP / SAMPLE_RATE, _put_seconds
    ),
    number("max_len", "max_target_positions", 448),
    number("d_model", "d_model", 384),
    number("n_layers", "encoder_layers", 4, "num_hidden_layers"),
    number("n_decoder_layers", "decoder_layers", 4),
    number("n_heads", "encoder_attention_heads", 6, "decoder_attention_heads"),
    number("d_ff", "encoder_ffn_dim", 1536, "decoder_ffn_dim"),
    token_id("start_id", "decoder_start_token_id", "bos_token_id", 50257),
    number("dropout", "dropout", 0.0),
    number("attention_dropout", "attention_dropout", 0.0),
    number("mlp_dropout", "activation_dropout", 0.0),
)


def _body(m: dict) -> list[Entry]:
    needs_division(m, "d_model", "encoder_attention_heads")
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    samples = round(m["max_seconds"] * SAMPLE_RATE)
    out = plain("encoder/position", "model.encoder.embed_positions.weight", samples // (2 * HOP), d)
    for i, n in ((1, m["n_mels"]), (2, d)):
        out += convolution(f"encoder/conv_{i}", f"model.encoder.conv{i}", (3,), n, d, flat=True)
    out += plain("embed/embedding", "model.decoder.embed_tokens.weight", m["vocab_size"], d)
    positions = "model.decoder.embed_positions.weight"
    out += plain("decoder/position/embedding", positions, m["max_len"], d)
    both = {"attention": "self_attn", "cross_attention": "encoder_attn"}
    for side, n in (("encoder", m["n_layers"]), ("decoder", m["n_decoder_layers"])):
        layers = both if side == "decoder" else {"attention": "self_attn"}
        for i in range(n):
            ours, theirs = f"{side}/stack/layer_{i}", f"model.{side}.layers.{i}"
            for j, (name, at) in enumerate(layers.items(), 1):
                for x in ("query", "key", "value"):
                    own = f"{ours}/{name}/{x}", f"{theirs}.{at}.{x[0]}_proj"
                    out += dense(*own, d, heads, bias=x != "key")
                out += dense(f"{ours}/{name}/out", f"{theirs}.{at}.out_proj", heads, d)
                out += norm(f"{ours}/norm_{j}", f"{theirs}.{at}_layer_norm", d)
            out += dense(f"{ours}/mlp/up", f"{theirs}.fc1", d, m["d_ff"])
            out += dense(f"{ours}/mlp/down", f"{theirs}.fc2", m["d_ff"], d)
            out += norm(f"{ours}/norm_{len(layers) + 1}", f"{theirs}.final_layer_norm", d)
        out += norm(f"{side}/final_norm", f"model.{side}.layer_norm", d)
    return out


def _check(config: dict) -> None:
    refuse(
        config,
        {
            "activation_function": ("gelu",),
            "scale_embedding": (False,),
            "tie_word_embeddings": (True,),
        },
    )
    for one, other, default in (
        ("encoder_attention_heads", "decoder_attention_heads", 6),
        ("encoder_ffn_dim", "decoder_ffn_dim", 1536),
    ):
        sizes = config.get(one, default), config.get(other, default)
        if sizes[0] != sizes[1]:
            raise UserError(
                f"config.json: {one} is {sizes[0]!r} and {other} {sizes[1]!r}; bigjax only "
                "supports equal sizes. Such a model cannot be imported."
            )


def _notes(config: dict) -> list[str]:
    names = ("encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment")
    return [
        f"config.json: {name}={config[name]} acts in training only, and a task of bigjax has its "
        "own settings"
        for name in names
        if config.get(name)
    ]


PROCESSOR = "preprocessor_config.json"


def _files(model: Mapping[str, Any], originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The settings of transformers' feature extractor: the original's where it says the same."""
    samples = round(model["max_seconds"] * SAMPLE_RATE) // (2 * HOP) * 2 * HOP
    seconds = samples // SAMPLE_RATE if samples % SAMPLE_RATE == 0 else samples / SAMPLE_RATE
    own = {
        "chunk_length": seconds,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": model["n_mels"],
        "hop_length": HOP,
        "n_fft": N_FFT,
        "n_samples": samples,
        "nb_max_frames": samples // HOP,
        "sampling_rate": SAMPLE_RATE,
    }
    before = json.loads(originals.get(PROCESSOR, b"{}"))
    if own.items() <= before.items():
        return {}
    rest = {
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
    }
    text = json.dumps({**rest, **before, **own}, indent=2, sort_keys=True)
    return {PROCESSOR: f"{text}\n".encode()}


FAMILY = Family(
    name="whisper",
    fixed={"sample_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop": HOP},
    fields=_FIELDS,
    prefix="model.",
    architectures={
        "WhisperForConditionalGeneration": Architecture((), {"name": "transcribe"}),
    },
    body=_body,
    tied=lambda m: {"proj_out.weight": "model.decoder.embed_tokens.weight"},
    head_names=r"proj_out\.",
    check=_check,
    notes=_notes,
    # By default transformers never begins a text with the ids of GPT-2's space and end.
    new_config=lambda m: {"is_encoder_decoder": True, "begin_suppress_tokens": None},
    files=_files,
)
