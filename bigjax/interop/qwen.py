"""Qwen 2, 2.5 and 3: tensors of transformers' Qwen2ForCausalLM and Qwen3ForCausalLM, and those of
bigjax.models.gpt."""

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import flag, number, refuse

_LAYERS = number("", "num_hidden_layers", 32)
_USES_WINDOW = flag("", "use_sliding_window", False)


def _types_of(config: dict) -> tuple[list, str]:
    """Layers from max_window_layers on have the window, if there is one."""
    used = _USES_WINDOW.get(config) and config.get("sliding_window", 4096) is not None
    n = _LAYERS.get(config)
    first = config.get("max_window_layers", 28) if used else n
    if type(first) is not int or first < 0:
        refuse(config, {"max_window_layers": (28,)}, "It must be a number of layers.")
    computed = [decoders.GLOBAL if i < first else decoders.LOCAL for i in range(n)]
    types, key = decoders.given_types(config, lambda c: computed)
    if not used and decoders.LOCAL in types:
        refuse(config, {"layer_types": (None,)}, "use_sliding_window is false.")
    return types, key if key == "layer_types" else "max_window_layers"


def _put_window(config: dict, window: int) -> None:
    config.update(use_sliding_window=bool(window), max_window_layers=0)


def _check(config: dict) -> None:
    refuse(config, {"hidden_act": ("silu", "swish")})
    rope.check_complete(config)


_COMMON = (
    *rope.fields(),
    *decoders.windows(_types_of, default=4096, more=_put_window),
    number("norm_eps", "rms_norm_eps", 1e-6),
    flag("tie_embeddings", "tie_word_embeddings", False),
)


def _new_config(m: dict) -> dict:
    return {"hidden_act": "silu", **rope.new_config(m)}


_SIZES = (151936, 32768, 4096, 32, 32, 22016, 32)
QWEN2 = decoders.family(
    "qwen2",
    "Qwen2ForCausalLM",
    fields=(*decoders.sizes(*_SIZES), *_COMMON),
    fixed={"activation": "swiglu", "qkv_bias": True},
    check=_check,
    new_config=_new_config,
)
QWEN3 = decoders.family(
    "qwen3",
    "Qwen3ForCausalLM",
    fields=(*decoders.sizes(*_SIZES, head_dim=128), *_COMMON),
    fixed={"activation": "swiglu", "qk_norm": "head"},
    check=_check,
    new_config=lambda m: {"attention_bias": False, **_new_config(m)},
)
