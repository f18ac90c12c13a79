"""Marian: tensors of transformers' MarianMTModel, and those of bigjax.models.t5 as of 2017."""

from bigjax.errors import UserError
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
    plain,
    refuse,
    reshaped,
    token_id,
)

_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu_exact", "relu": "relu"}
_FIELDS = (
    number("vocab_size", "vocab_size", 58101),
    number("max_len", "max_position_embeddings", 1024),
    number("d_model", "d_model", 1024),
    number("n_layers", "encoder_layers", 12),
    number("n_decoder_layers", "decoder_layers", 12),
    number("n_heads", "encoder_attention_heads", 16, "decoder_attention_heads"),
    number("d_ff", "encoder_ffn_dim", 4096, "decoder_ffn_dim"),
    choice("activation", "activation_function", "gelu", _ACTIVATIONS),
    flag("scale_embeddings", "scale_embedding", False),
    token_id("start_id", "decoder_start_token_id", "pad_token_id", 58100),
    number("dropout", "dropout", 0.1),
    number("attention_dropout", "attention_dropout", 0.0),
    number("mlp_dropout", "activation_dropout", 0.0),
)


def _body(m: dict) -> list[Entry]:
    needs_division(m, "d_model", "encoder_attention_heads")
    d, heads = m["d_model"], (m["n_heads"], m["d_model"] // m["n_heads"])
    out = plain("embed/embedding", "model.shared.weight", m["vocab_size"], d)
    both = {"attention": "self_attn", "cross_attention": "encoder_attn"}
    for side, n in (("encoder", m["n_layers"]), ("decoder", m["n_decoder_layers"])):
        layers = both if side == "decoder" else {"attention": "self_attn"}
        for i in range(n):
            ours, theirs = f"{side}/stack/layer_{i}", f"model.{side}.layers.{i}"
            for j, (name, at) in enumerate(layers.items(), 1):
                for x in ("query", "key", "value"):
                    out += dense(f"{ours}/{name}/{x}", f"{theirs}.{at}.{x[0]}_proj", d, heads)
                out += dense(f"{ours}/{name}/out", f"{theirs}.{at}.out_proj", heads, d)
                out += norm(f"{ours}/norm_{j}", f"{theirs}.{at}_layer_norm", d)
            out += dense(f"{ours}/mlp/up", f"{theirs}.fc1", d, m["d_ff"])
            out += dense(f"{ours}/mlp/down", f"{theirs}.fc2", m["d_ff"], d)
            out += norm(f"{ours}/norm_{len(layers) + 1}", f"{theirs}.final_layer_norm", d)
    return out


def _heads(m: dict, n_labels: int) -> dict[str, list[Entry]]:
    del n_labels
    return {"bias": reshaped("bias", "final_logits_bias", (m["vocab_size"],), (1, m["vocab_size"]))}


def _check(config: dict) -> None:
    refuse(
        config,
        {
            "share_encoder_decoder_embeddings": (True,),
            "tie_word_embeddings": (True,),
            "decoder_vocab_size": (config.get("vocab_size"), None),
            "normalize_before": (False,),
            "normalize_embedding": (False,),
            "add_final_layer_norm": (False,),
            "static_position_embeddings": (True,),
        },
    )
    for one, other in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    ):
        if config.get(one) != config.get(other):
            raise UserError(
                f"config.json: {one} is {config.get(one)!r} and {other} {config.get(other)!r}; "
                "bigjax only supports equal sizes. Such a model cannot be imported."
            )


_COPIES = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
FAMILY = Family(
    name="marian",
    fixed={
        "position": "sinusoidal_halves",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "post_norm": True,
        "bias": True,
        "key_bias": True,
        "scale_scores": True,
        "tie_embeddings": True,
        "scale_logits": False,
        "output_bias": True,
    },
    fields=_FIELDS,
    prefix="model.",
    architectures={"MarianMTModel": Architecture(("bias",), {"name": "seq2seq"})},
    body=_body,
    heads=_heads,
    tied=lambda m: {f"{name}.weight": "model.shared.weight" for name in _COPIES},
    redundant=r"model\.(encoder|decoder)\.embed_positions\.weight$",
    head_names=r"(lm_head\.|final_logits_bias$)",
    check=_check,
    new_config=lambda m: {
        "is_encoder_decoder": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "forced_eos_token_id": None,
        "pad_token_id": m["start_id"],  # the default is outside of a small vocabulary
    },
    limits=lambda m: {
        "activation": tuple(dict.fromkeys(_ACTIVATIONS.values())),
        "head_dim": (m["d_model"] // m["n_heads"],),
    },
    special_tokens=("eos", "pad"),
    appends_eos=True,
)
