"""OLMo 2: tensors of transformers' Olmo2ForCausalLM, and those of bigjax.models.gpt."""

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import flag, number, refuse


def _check(config: dict) -> None:
    refuse(config, {"hidden_act": ("silu", "swish")})
    rope.check_complete(config)


FAMILY = decoders.family(
    "olmo2",
    "Olmo2ForCausalLM",
    fields=(
        *decoders.sizes(50304, 2048, 4096, 32, 32, 11008),
        *rope.fields(),
        number("norm_eps", "rms_norm_eps", 1e-5),
        flag("tie_embeddings", "tie_word_embeddings", False),
    ),
    fixed={"activation": "swiglu", "norm_place": "post", "qk_norm": "width"},
    check=_check,
    norms=decoders.POST,
    new_config=lambda m: {
        "hidden_act": "silu",
        "attention_bias": False,
        **rope.new_config(m),
    },
)
