"""Llama: tensors of transformers' LlamaForCausalLM, and those of bigjax.models.gpt.

Both rotate the two halves of a head, so query and key need no permutation.
"""

from bigjax.errors import UserError
from bigjax.interop.mapping import (
    Architecture,
    Family,
    Field,
    dense,
    flag,
    norm,
    number,
    output_head,
    plain,
    refuse,
)

_THETA = number("rope_theta", "rope_theta", 10000.0)


def _get_theta(config: dict) -> float:
    """rope_theta from rope_parameters (transformers 5), else from the key of older versions."""
    return _THETA.get(config.get("rope_parameters") or config)


def _put_theta(config: dict, value: float) -> None:
    if config.get("rope_parameters"):
        config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": value}
    if "rope_theta" in config or not config.get("rope_parameters"):
        config["rope_theta"] = value


def _or(ours: str, theirs: str, default) -> Field:
    """A number that is default(config) where it is absent or null."""
    field = number(ours, theirs, 1)
    return Field(ours, lambda c: default(c) if c.get(theirs) is None else field.get(c), field.put)


_WIDTH = number("d_model", "hidden_size", 4096)
_HEADS = number("n_heads", "num_attention_heads", 32)
_FIELDS = (
    number("vocab_size", "vocab_size", 32000),
    number("max_len", "max_position_embeddings", 2048),
    _WIDTH,
    number("n_layers", "num_hidden_layers", 32),
    _HEADS,
    _or("n_kv_heads", "num_key_value_heads", _HEADS.get),
    _or("head_dim", "head_dim", lambda c: _WIDTH.get(c) // _HEADS.get(c)),
    number("d_ff", "intermediate_size", 11008),
    Field("rope_theta", _get_theta, _put_theta),
    number("norm_eps", "rms_norm_eps", 1e-6),
    flag("tie_embeddings", "tie_word_embeddings", False),
)


def _body(m: dict) -> list:
    d, width = m["d_model"], m["head_dim"]
    out = plain("embed/embedding", "model.embed_tokens.weight", m["vocab_size"], d)
    for i in range(m["n_layers"]):
        ours, theirs = f"stack/layer_{i}", f"model.layers.{i}"
        linear = lambda name, at, ins, outs: dense(
            f"{ours}/{name}", f"{theirs}.{at}_proj", ins, outs, bias=False
        )
        heads, kv_heads = (m["n_heads"], width), (m["n_kv_heads"], width)
        out += [
            *linear("attention/query", "self_attn.q", d, heads),
            *linear("attention/key", "self_attn.k", d, kv_heads),
            *linear("attention/value", "self_attn.v", d, kv_heads),
            *linear("attention/out", "self_attn.o", heads, d),
            *linear("mlp/gate", "mlp.gate", d, m["d_ff"]),
            *linear("mlp/up", "mlp.up", d, m["d_ff"]),
            *linear("mlp/down", "mlp.down", m["d_ff"], d),
            *norm(f"{ours}/norm_1", f"{theirs}.input_layernorm", d, bias=False),
            *norm(f"{ours}/norm_2", f"{theirs}.post_attention_layernorm", d, bias=False),
        ]
    return out + norm("final_norm", "model.norm", d, bias=False)


def _check(config: dict) -> None:
    refuse(
        config,
        {
            "hidden_act": ("silu", "swish"),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "partial_rotary_factor": (1.0,),
        },
    )
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        supported = (
            isinstance(rope, dict)
            and rope.get("partial_rotary_factor", 1.0) == 1.0
            and rope.get("rope_type", rope.get("type", "default")) == "default"
        )
        if not supported:
            raise UserError(
                f"config.json: {key} is {rope!r}; only rotary positions of type "
                "'default', over complete heads, are supported. A model with scaled positions "
                "would compute something else, so it is not imported."
            )


def _notes(config: dict) -> list[str]:
    rate = config.get("attention_dropout", 0.0)
    note = "is not supported: attention weights are trained without dropout"
    return [f"attention_dropout={rate} {note}"] if rate else []


def _tied(m: dict) -> dict[str, str]:
    return {"lm_head.weight": "model.embed_tokens.weight"} if m["tie_embeddings"] else {}


FAMILY = Family(
    name="llama",
    fixed={
        "position": "rotary",
        "norm": "rmsnorm",
        "bias": False,
        "parallel_block": False,
        "activation": "swiglu",
    },
    fields=_FIELDS,
    prefix="model.",
    architectures={"LlamaForCausalLM": Architecture(("head",), {"name": "causal_lm"})},
    body=_body,
    heads=output_head,
    tied=_tied,
    redundant=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",
    head_names=r"lm_head\.",
    check=_check,
    notes=_notes,
    # rope_theta for transformers 4, rope_parameters for 5.
    new_config=lambda m: {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": m["rope_theta"],
        "rope_parameters": {"rope_type": "default"},
    },
)
