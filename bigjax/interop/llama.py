"""Llama 1 to 3, SmolLM: tensors of transformers' LlamaForCausalLM, and those of bigjax.models.gpt.

Both rotate the two halves of a head, so query and key need no permutation.
"""

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import flag, number, refuse


def _check(config: dict) -> None:
    refuse(config, {"hidden_act": ("silu", "swish")})
    rope.check_complete(config)


def _notes(config: dict) -> list[str]:
    notes = decoders.attention_dropout_note(config)
    if config.get("pretraining_tp") not in (None, 1):
        what = f"pretraining_tp={config['pretraining_tp']} is not used"
        notes.append(f"{what}: it only splits products, whose sums are rounded in another order")
    return notes


FAMILY = decoders.family(
    "llama",
    "LlamaForCausalLM",
    fields=(
        *decoders.sizes(32000, 2048, 4096, 32, 32, 11008),
        *rope.fields(),
        number("norm_eps", "rms_norm_eps", 1e-6),
        flag("tie_embeddings", "tie_word_embeddings", False),
    ),
    fixed={"activation": "swiglu"},
    check=_check,
    notes=_notes,
    new_config=lambda m: {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **rope.new_config(m),
    },
)
