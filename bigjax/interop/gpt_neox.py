"""GPT-NeoX and Pythia: tensors of transformers' GPTNeoXForCausalLM, and those of bigjax.models.gpt.

Query, key and value are one tensor, in which those of each head are together.
"""

import functools

from bigjax.interop import decoders, rope
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    choice,
    dense,
    flag,
    needs_division,
    norm,
    number,
    output_head,
    plain,
    refuse,
)

_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
}
_PARALLEL = flag("", "use_parallel_residual", True)
_HEAD = "embed_out"
_WITHOUT = ("n_kv_heads", "head_dim")
_FIELDS = (
    *(
        field
        for field in decoders.sizes(50432, 2048, 6144, 44, 64, 24576)
        if field.ours not in _WITHOUT
    ),
    *rope.fields(share=0.25, theta_key="rotary_emb_base", share_key="rotary_pct"),
    *(_PARALLEL._replace(ours=name) for name in ("parallel_block", "parallel_norm")),
    choice("activation", "hidden_act", "gelu", _ACTIVATIONS),
    number("norm_eps", "layer_norm_eps", 1e-5),
    number("dropout", "hidden_dropout", 0.0),
    flag("tie_embeddings", "tie_word_embeddings", False),
)


def _body(m: dict) -> list:
    needs_division(m, "hidden_size", "num_attention_heads")
    d, n, width = m["d_model"], m["n_heads"], m["d_model"] // m["n_heads"]
    out = plain("embed/embedding", "gpt_neox.embed_in.weight", m["vocab_size"], d)
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"gpt_neox.layers.{i}"
        linear = lambda name, at, ins, outs: dense(f"{ours}/{name}", f"{theirs}.{at}", ins, outs)
        out += [
            *norm(f"{ours}/norm_1", f"{theirs}.input_layernorm", d),
            *norm(f"{ours}/norm_2", f"{theirs}.post_attention_layernorm", d),
            *_by_head(f"{ours}/attention", f"{theirs}.attention.query_key_value", d, n, width),
            *linear("attention/out", "attention.dense", (n, width), d),
            *linear("mlp/up", "mlp.dense_h_to_4h", d, m["d_ff"]),
            *linear("mlp/down", "mlp.dense_4h_to_h", m["d_ff"], d),
        ]
    return out + norm("final_norm", "gpt_neox.final_layer_norm", d)


def _by_head(ours: str, theirs: str, d: int, n: int, width: int) -> list[Entry]:
    """One layer whose outputs are [n heads, 3, width]."""
    parts = lambda kind, *shape: tuple(
        (f"{ours}/{x}/{kind}", shape) for x in ("query", "key", "value")
    )
    outs, each = 3 * n * width, (n, 3, width)
    return [
        Entry(
            f"{theirs}.weight", (outs, d), parts("kernel", d, n, width), (1, 0), 2, view=(d, *each)
        ),
        Entry(f"{theirs}.bias", (outs,), parts("bias", n, width), (), 1, view=each),
    ]


def _limits(m: dict) -> dict[str, tuple]:
    return {
        "activation": tuple(dict.fromkeys(_ACTIVATIONS.values())),
        "n_kv_heads": (m["n_heads"],),
        "head_dim": (m["d_model"] // m["n_heads"],),
        "parallel_norm": (m["parallel_block"],),
    }


def _new_config(m: dict) -> dict:
    """For transformers 4 and 5."""
    new = rope.new_config(m)
    new["rotary_emb_base"] = new.pop("rope_theta")
    new["rotary_pct"] = m["rope_share"]
    return {"attention_bias": True, **{k: x for k, x in new.items() if k != "rope_parameters"}}


FAMILY = Family(
    name="gpt_neox",
    fixed={
        **decoders.unused(_FIELDS),
        "position": "rotary",
        "norm": "layernorm",
        "bias": True,
    },
    fields=_FIELDS,
    prefix="gpt_neox.",
    architectures={"GPTNeoXForCausalLM": Architecture(("head",), {"name": "causal_lm"})},
    body=_body,
    heads=functools.partial(output_head, theirs=_HEAD),
    tied=lambda m: {f"{_HEAD}.weight": "gpt_neox.embed_in.weight"} if m["tie_embeddings"] else {},
    redundant=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    head_names=r"embed_out\.",
    renamed=((r"^lm_head\.", "embed_out."),),
    check=lambda config: refuse(config, {"attention_bias": (True,), "is_decoder": (False, True)}),
    notes=decoders.attention_dropout_note,
    new_config=_new_config,
    limits=_limits,
)
