"""T5 and T5 1.1: tensors of transformers' T5ForConditionalGeneration, and those of models.t5.

The first layer of each side holds the relative positions that all its layers use. The decoder is a
head here, since T5EncoderModel has none.

The output layer of T5 is the embedding, before which features are scaled by 1 / sqrt(d_model); that
of T5 1.1 is a layer of its own, without a scale. transformers 4 has tie_word_embeddings for both.
transformers 5 reads it only as the default of scale_decoder_outputs, ties the output layer unless
the files have another lm_head.weight, and always writes tie_word_embeddings=true.
"""

from collections.abc import Iterable

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
_SCALED, _HEAD = "scale_decoder_outputs", "lm_head.weight"
_RATE = number("dropout", "dropout_rate", 0.1)
_ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-gelu_new": "geglu",
    "gated-silu": "swiglu",
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "silu": "silu",
}
_ACTIVATION = choice("activation", "feed_forward_proj", "relu", _ACTIVATIONS)


def _get_decoder_layers(config: dict) -> int:
    if config.get("num_decoder_layers") is None:
        return _LAYERS.get(config)
    return number("", "num_decoder_layers", 6).get(config)


def _get_scaled(config: dict) -> bool:
    return flag("", _SCALED, _TIED.get(config)).get(config)


def _put_scaled(config: dict, value: bool) -> None:
    if _SCALED in config or value != _TIED.get(config):
        config[_SCALED] = value


def _put_tied(config: dict, value: bool) -> None:
    if _SCALED not in config:  # else of transformers 5, where the tensors determine it
        config["tie_word_embeddings"] = value


def _put_activation(config: dict, value: str) -> None:
    for derived in ("dense_act_fn", "is_gated_act"):
        config.pop(derived, None)
    _ACTIVATION.put(config, value)


def _by_tensors(config: dict, names: Iterable[str]) -> dict[str, bool]:
    """Of a config.json of transformers 5: whether the output layer is another one."""
    untied = config.get(_SCALED) is False and _HEAD in names
    return {"tie_embeddings": False} if untied else {}


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
    Field("activation", _ACTIVATION.get, _put_activation),
    Field("tie_embeddings", _TIED.get, _put_tied),
    Field("scale_logits", _get_scaled, _put_scaled),
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


def _check(config: dict) -> None:
    refuse(config, {"is_decoder": (False,), "is_encoder_decoder": (True, False)})
    if not _TIED.get(config):
        refuse(config, {_SCALED: (False,)}, "An output layer of its own must not be scaled.")
    gated, _, name = str(config.get("feed_forward_proj", "relu")).rpartition("-")
    name = "gelu_new" if gated and name == "gelu" else name
    why = "It must be as feed_forward_proj says, or be removed."
    refuse(config, {"is_gated_act": (bool(gated),), "dense_act_fn": (name,)}, why)


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
        "T5Model": Architecture(("decoder",), _TASK, marker="decoder"),
        "T5EncoderModel": Architecture((), _TASK),
    },
    body=_body,
    heads=_heads,
    tied=_tied,
    redundant=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
    check=_check,
    new_config=lambda m: {"is_encoder_decoder": True},
    limits=lambda m: {
        "activation": tuple(_ACTIVATIONS.values()),
        "scale_logits": (True, False) if m["tie_embeddings"] else (False,),
    },
    special_tokens=("eos", "pad"),
    appends_eos=True,
    by_tensors=_by_tensors,
)
