"""Phi-3 and Phi-4: tensors of transformers' Phi3ForCausalLM, and those of bigjax.models.gpt.

Queries, keys and values are one tensor there, and so are the gate and the first layer of the MLP.
"""

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import flag, number, refuse
from bigjax.interop.mistral import uniform_types

_DROPOUT = number("dropout", "resid_pdrop", 0.0, "embd_pdrop")


def _check(config: dict) -> None:
    refuse(config, {"hidden_act": ("silu", "swish")})


def _notes(config: dict) -> list[str]:
    notes = decoders.attention_dropout_note(config)
    rates = [config.get(key, 0.0) for key in ("resid_pdrop", "embd_pdrop")]
    if rates[0] != rates[1]:
        notes.append(
            f"embd_pdrop={rates[1]} has no own key: model.dropout, which applies to both, is "
            f"resid_pdrop={rates[0]}"
        )
    return notes


def _new_config(m: dict) -> dict:
    """transformers 4 needs exactly these keys of rope_scaling."""
    new = {"hidden_act": "silu", **rope.new_config(m), "partial_rotary_factor": m["rope_share"]}
    if m.get("rope_scaling"):
        block = new["rope_scaling"]
        new["original_max_position_embeddings"] = block.pop("original_max_position_embeddings")
        block["type"] = block.pop("rope_type")
    return new


_WINDOW, _EVERY = decoders.windows(uniform_types(None))
FAMILY = decoders.family(
    "phi3",
    "Phi3ForCausalLM",
    fields=(
        *decoders.sizes(32064, 4096, 3072, 32, 32, 8192),
        *rope.fields(share=1.0),
        _WINDOW,
        number("norm_eps", "rms_norm_eps", 1e-5),
        _DROPOUT,
        flag("tie_embeddings", "tie_word_embeddings", False),
    ),
    fixed={"activation": "swiglu"},
    limits=lambda m: {
        "rope_scaling": ("", "longrope"),
        "head_dim": (m["d_model"] // m["n_heads"],),
    },
    check=_check,
    notes=_notes,
    new_config=_new_config,
    fused=True,
)
