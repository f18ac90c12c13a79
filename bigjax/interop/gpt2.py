"""GPT-2: tensors of transformers' GPT2Model, and those of bigjax.models.gpt.

Its layers are Conv1D, whose weights are [in, out] as ours; query, key and value are one tensor.
"""

from bigjax.interop.decoders import UNUSED
from bigjax.interop.mapping import (
    Architecture,
    Family,
    Field,
    choice,
    dense,
    flag,
    fused,
    needs_division,
    norm,
    number,
    output_head,
    plain,
    refuse,
)

_D_FF = number("d_ff", "n_inner", 3072)


def _get_d_ff(config: dict) -> int:
    if config.get("n_inner") is None:
        return 4 * number("d_model", "n_embd", 768).get(config)
    return _D_FF.get(config)


_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
}
_FIELDS = (
    number("vocab_size", "vocab_size", 50257),
    number("max_len", "n_positions", 1024),
    number("d_model", "n_embd", 768),
    number("n_layers", "n_layer", 12),
    number("n_heads", "n_head", 12),
    Field("d_ff", _get_d_ff, _D_FF.put),
    choice("activation", "activation_function", "gelu_new", _ACTIVATIONS),
    number("norm_eps", "layer_norm_epsilon", 1e-5),
    number("dropout", "resid_pdrop", 0.1, "embd_pdrop"),
    flag("tie_embeddings", "tie_word_embeddings", True),
)


def _body(m: dict) -> list:
    needs_division(m, "n_embd", "n_head")
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    out = [
        *plain("embed/embedding", "transformer.wte.weight", m["vocab_size"], d),
        *plain("position/embedding", "transformer.wpe.weight", m["max_len"], d),
    ]
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"transformer.h.{i}"
        qkv = tuple(f"{ours}/attention/{x}" for x in ("query", "key", "value"))
        conv = lambda name, at, ins, outs: dense(
            f"{ours}/{name}", f"{theirs}.{at}", ins, outs, transposed=False
        )
        out += [
            *norm(f"{ours}/norm_1", f"{theirs}.ln_1", d),
            *fused(qkv, f"{theirs}.attn.c_attn", d, heads),
            *conv("attention/out", "attn.c_proj", heads, d),
            *norm(f"{ours}/norm_2", f"{theirs}.ln_2", d),
            *conv("mlp/up", "mlp.c_fc", d, m["d_ff"]),
            *conv("mlp/down", "mlp.c_proj", m["d_ff"], d),
        ]
    return out + norm("final_norm", "transformer.ln_f", d)


def _check(config: dict) -> None:
    refuse(
        config,
        {
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )


def _notes(config: dict) -> list[str]:
    notes, resid = [], config.get("resid_pdrop", 0.1)
    if config.get("attn_pdrop", 0.1):
        notes.append(
            f"attn_pdrop={config.get('attn_pdrop', 0.1)} is not supported: attention "
            "weights are trained without dropout"
        )
    if config.get("embd_pdrop", 0.1) != resid:
        notes.append(
            f"embd_pdrop={config.get('embd_pdrop', 0.1)} has no own key: "
            f"model.dropout, which applies to both, is resid_pdrop={resid}"
        )
    return notes


def _tied(m: dict) -> dict[str, str]:
    return {"lm_head.weight": "transformer.wte.weight"} if m["tie_embeddings"] else {}


def _limits(m: dict) -> dict[str, tuple]:
    return {
        "activation": tuple(dict.fromkeys(_ACTIVATIONS.values())),
        "n_kv_heads": (m["n_heads"],),
        "head_dim": (m["d_model"] // m["n_heads"],),
    }


_TASK = {"name": "causal_lm"}
FAMILY = Family(
    name="gpt2",
    fixed={**UNUSED, "position": "learned", "norm": "layernorm", "bias": True},
    fields=_FIELDS,
    prefix="transformer.",
    architectures={
        "GPT2LMHeadModel": Architecture(("head",), _TASK),
        "GPT2Model": Architecture((), _TASK, bare=True),
    },
    body=_body,
    heads=output_head,
    tied=_tied,
    redundant=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)$",
    head_names=r"lm_head\.",
    check=_check,
    notes=_notes,
    new_config=lambda m: {"attn_pdrop": 0.0},
    limits=_limits,
)
