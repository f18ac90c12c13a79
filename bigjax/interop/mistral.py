"""Mistral: tensors of transformers' MistralForCausalLM, and those of bigjax.models.gpt."""

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import flag, number, refuse

_LAYERS = number("", "num_hidden_layers", 32)


def uniform_types(default: int | None):
    """Of a family whose layers have a window, all of them, unless sliding_window is null."""

    def types_of(config: dict) -> tuple[list, str]:
        kind = decoders.GLOBAL
        if config.get("sliding_window", default) is not None:
            kind = decoders.LOCAL
        types = [kind] * _LAYERS.get(config)
        refuse(config, {"layer_types": (None, types)})
        return types, "sliding_window"

    return types_of


def _check(config: dict) -> None:
    refuse(config, {"hidden_act": ("silu", "swish")})
    rope.check_complete(config)


_WINDOW, _EVERY = decoders.windows(uniform_types(4096), default=4096)
FAMILY = decoders.family(
    "mistral",
    "MistralForCausalLM",
    fields=(
        *decoders.sizes(32000, 4096 * 32, 4096, 32, 32, 14336, n_kv_heads=8),
        *rope.fields(),
        _WINDOW,
        number("norm_eps", "rms_norm_eps", 1e-6),
        flag("tie_embeddings", "tie_word_embeddings", False),
    ),
    fixed={"activation": "swiglu"},
    check=_check,
    new_config=lambda m: {"hidden_act": "silu", **rope.new_config(m)},
)
