"""T5 and T5 1.1: tensors of transformers' T5ForConditionalGeneration, and those of models.t5.

The first layer of each side holds the relative positions that all its layers use. The decoder is a
head here, since T5EncoderModel has none.
"""

from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    Field,
    choice,
    dense,
    flag,
    norm,
    number,
    plain,
    refuse,
    token_id,
)

_LAYERS = number("n_layers", "num_layers", 6)
_TIED = flag("tie_embeddings", "tie_word_embeddings", True)
_RATE = number("dropout", "dropout_rate", 0.1)
_ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "silu": "silu",
}


def _get_decoder_layers(config: dict) -> int:
    if config.get("num_decoder_layers") is None:
        return _LAYERS.get(config)
    return number("", "num_decoder_layers", 6).get(config)


def _same(ours: str, field: Field) -> Field:
    """A field of ours for which transformers has no key of its own."""
    return Field(ours, field.get, lambda config, value: None)


_FIELDS = (
    number("vocab_size", "vocab_size", 32128),
    number("max_len", "n_positions", 512),
    number("d_model", "d_model", 512),
    _LAYERS,
    Field(
        "n_decoder_layers",
        _get_decoder_layers,
        lambda config, value: config.update(num_decoder_layers=value),
    ),
    number("n_heads", "num_heads", 8),
    number("head_dim", "d_kv", 64),
    number("d_ff", "d_ff", 2048),
    number("relative_buckets", "relative_attention_num_buckets", 32),
    number("relative_distance", "relative_attention_max_distance", 128),
    number("norm_eps", "layer_norm_epsilon", 1e-6),
    choice("activation", "feed_forward_proj", "relu", _ACTIVATIONS),
    _TIED,
    _same("scale_logits", _TIED),
    token_id("start_id", "decoder_start_token_id", "pad_token_id", 0),
    _RATE,
    _same("attention_dropout", _RATE),
    _same("mlp_dropout", _RATE),
)


def _attention(m: dict, ours: str, theirs: str) -> list[Entry]:
    d, heads = m["d_model"], (m["n_heads"], m["head_dim"])
    linear = lambda x, name, ins, outs: dense(
        f"{ours}/{name}", f"{theirs}.{x}", ins, outs, bias=False
    )
    inputs = zip("qkv", ("query", "key", "value"))
    out = [entry for x, name in inputs for entry in linear(x, name, d, heads)]
    return out + linear("o", "out", heads, d)


def _side(m: dict, side: str, n_layers: int, attention: dict[str, str]) -> list[Entry]:
    """The tensors of one side. attention: {our name: theirs} of the layers before the MLP."""
    d, first = m["d_model"], f"{side}.block.0.layer.0.SelfAttention"
    shape = m["relative_buckets"], m["n_heads"]
    out = plain(f"{side}/relative/embedding", f"{first}.relative_attention_bias.weight", *shape)
    up = {"wi_0": "gate", "wi_1": "up"} if m["activation"] in ("geglu", "swiglu") else {"wi": "up"}
    for i in range(n_layers):
        ours, theirs = f"{side}/stack/layer_{i}", f"{side}.block.{i}.layer"
        for j, (name, their_name) in enumerate(attention.items()):
            out += _attention(m, f"{ours}/{name}", f"{theirs}.{j}.{their_name}")
            out += norm(f"{ours}/norm_{j + 1}", f"{theirs}.{j}.layer_norm", d, bias=False)
        j = len(attention)
        at = f"{theirs}.{j}.DenseReluDense"
        for x, name in up.items():
            out += dense(f"{ours}/mlp/{name}", f"{at}.{x}", d, m["d_ff"], bias=False)
        out += dense(f"{ours}/mlp/down", f"{at}.wo", m["d_ff"], d, bias=False)
        out += norm(f"{ours}/norm_{j + 1}", f"{theirs}.{j}.layer_norm", d, bias=False)
    return out + norm(f"{side}/final_norm", f"{side}.final_layer_norm", d, bias=False)


def _body(m: dict) -> list[Entry]:
    embedding = plain("embed/embedding", "shared.weight", m["vocab_size"], m["d_model"])
    return embedding + _side(m, "encoder", m["n_layers"], {"attention": "SelfAttention"})


def _heads(m: dict, n_labels: int) -> dict[str, list[Entry]]:
    del n_labels
    both = {"attention": "SelfAttention", "cross_attention": "EncDecAttention"}
    output = dense("head", "lm_head", m["d_model"], m["vocab_size"], bias=False)
    return {
        "decoder": _side(m, "decoder", m["n_decoder_layers"], both),
        "head": [] if m["tie_embeddings"] else output,
    }


def _tied(m: dict) -> dict[str, str]:
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies += ["lm_head.weight"] if m["tie_embeddings"] else []
    return dict.fromkeys(copies, "shared.weight")


_TASK = {"name": "seq2seq"}
FAMILY = Family(
    name="t5",
    fixed={
        "position": "relative",
        "norm": "rmsnorm",
        "post_norm": False,
        "bias": False,
        "scale_scores": False,
        "scale_embeddings": False,
        "output_bias": False,
    },
    fields=_FIELDS,
    architectures={
        "T5ForConditionalGeneration": Architecture(("decoder", "head"), _TASK, marker="decoder"),
        "T5Model": Architecture(("decoder",), _TASK, marker="(never chosen)"),
        "T5EncoderModel": Architecture((), _TASK),
    },
    body=_body,
    heads=_heads,
    tied=_tied,
    check=lambda config: refuse(
        config, {"is_decoder": (False,), "is_encoder_decoder": (True, False)}
    ),
    new_config=lambda m: {"is_encoder_decoder": True},
    limits=lambda m: {
        "activation": tuple(_ACTIVATIONS.values()),
        "scale_logits": (m["tie_embeddings"],),
    },
    special_tokens=("eos", "pad"),
)
