"""What the families of transformers' decoders share: options of bigjax.models.gpt, and tensors."""

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

from bigjax.errors import UserError
from bigjax.interop import labels, rope
from bigjax.interop.mapping import (
    Architecture,
    Entry,
    Family,
    Field,
    dense,
    norm,
    number,
    number_or,
    output_head,
    plain,
    refuse,
)

# Options of models.gpt with the values of models that do not use them.
UNUSED: dict[str, Any] = {
    "rope_share": 1.0,
    "rope_scaling": "",
    "window": 0,
    "global_every": 0,
    "local_rope_theta": 0.0,
    "norm_place": "pre",
    "norm_offset": False,
    "qk_norm": "",
    "qkv_bias": False,
    "parallel_block": False,
    "parallel_norm": False,
    "query_scale": 0.0,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "embed_scale": False,
}


def unused(fields: Iterable[Field]) -> dict[str, Any]:
    """UNUSED without the options of these fields."""
    own = {field.ours for field in fields}
    return {key: value for key, value in UNUSED.items() if key not in own}


# --- Fields of config.json -------------------------------------------------------------------


def optional(ours: str, theirs: str, default: float | None) -> Field:
    """A positive number; null in config.json is 0. default: of transformers, for an absent key."""

    def get(config):
        value = config.get(theirs, default)
        if value is None:
            return 0.0
        value = number(ours, theirs, 1.0).get({theirs: value})
        if value <= 0:
            raise UserError(f"config.json: {theirs} is {value!r}; it must be positive, or null.")
        return value

    return Field(ours, get, lambda config, value: config.update({theirs: value or None}))


def sizes(
    vocab_size: int,
    max_len: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
) -> tuple[Field, ...]:
    """The sizes of a decoder, with the defaults of transformers for absent keys; n_kv_heads and
    head_dim are n_heads and d_model / n_heads where they are null, or absent without a default."""
    width, heads = number("", "hidden_size", d_model), number("", "num_attention_heads", n_heads)
    each = lambda c: head_dim or width.get(c) // heads.get(c)
    few = number("n_kv_heads", "num_key_value_heads", n_kv_heads or 1)

    def get_few(config):
        if n_kv_heads and "num_key_value_heads" not in config:
            return n_kv_heads
        return heads.get(config) if config.get("num_key_value_heads") is None else few.get(config)

    return (
        number("vocab_size", "vocab_size", vocab_size),
        Field("max_len", number("", rope.LEN, max_len).get, rope.put_max_len),
        width._replace(ours="d_model"),
        number("n_layers", "num_hidden_layers", n_layers),
        heads._replace(ours="n_heads"),
        few._replace(get=get_few),
        number_or("head_dim", "head_dim", each),
        number("d_ff", "intermediate_size", d_ff),
    )


# --- Windows ---------------------------------------------------------------------------------

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def layer_types(n_layers: int, window: int, every: int) -> list[str]:
    """transformers' name of each layer's attention."""
    is_global = lambda i: not window or bool(every) and (i + 1) % every == 0
    return [GLOBAL if is_global(i) else LOCAL for i in range(n_layers)]


def _every(types: list, usual: int, key: str) -> int | None:
    """model.global_every of these layer types; None if no layer has the window. usual: preferred if
    several fit. Raises UserError if none fits."""
    for kind in types:
        if kind not in (LOCAL, GLOBAL):
            raise UserError(
                f"config.json: {key} has {kind!r}; supported are {LOCAL!r} and {GLOBAL!r}."
            )
    if LOCAL not in types:
        return None
    first = types.index(GLOBAL) + 1 if GLOBAL in types else 0
    for every in (usual, first):
        if types == layer_types(len(types), 1, every):
            return every
    others = [i for i, kind in enumerate(types) if kind == GLOBAL]
    raise UserError(
        f"config.json: {key} gives {GLOBAL} to the layers {others} of {len(types)}; it must be "
        "each n-th layer, none or all."
    )


def windows(
    types_of: Callable[[dict], tuple[list, str]],
    usual: int = 0,
    default: int | None = None,
    more: Callable[[dict, int], None] = lambda config, window: None,
) -> tuple[Field, Field]:
    """model.window and model.global_every.

    types_of: config.json -> (the type of each layer, the key that says so). usual: global_every of
    the family's published models. default: of sliding_window. more: sets further keys for another
    window.
    """
    size = number("", "sliding_window", 1)

    def every(config):
        types, key = types_of(config)
        return _every(types, usual, key)

    def get_window(config):
        if every(config) is None:
            return 0
        value = config.get("sliding_window", default)
        if value is None:
            raise UserError(
                "config.json: sliding_window is null, but its layers have a window. Set it to the "
                "number of tokens."
            )
        return size.get({"sliding_window": value})

    def put_window(config, value):
        more(config, value)
        config["sliding_window"] = value or None
        types = config.get("layer_types")
        if types is not None and not (value and LOCAL in types):
            config["layer_types"] = layer_types(len(types), value, 0)

    def put_every(config, value):
        window = config.get("sliding_window", default) or 0
        config["layer_types"] = layer_types(config["num_hidden_layers"], window, value)

    return (
        Field("window", get_window, put_window),
        Field("global_every", lambda config: every(config) or 0, put_every),
    )


def given_types(config: dict, otherwise: Callable[[dict], list]) -> tuple[list, str]:
    """layer_types of config.json, or those that follow from other keys, with the key."""
    types = config.get("layer_types")
    if types is None:
        return otherwise(config), "num_hidden_layers"
    n = config.get("num_hidden_layers", len(types) if isinstance(types, list) else 0)
    if not isinstance(types, list) or len(types) != n:
        raise UserError(
            f"config.json: layer_types is {types!r}; it must be a list with one name for each of "
            f"num_hidden_layers={n}."
        )
    return types, "layer_types"


# --- Tensors ---------------------------------------------------------------------------------

PRE = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
BOTH = {
    "norm_1": "input_layernorm",
    "post_norm_1": "post_attention_layernorm",
    "norm_2": "pre_feedforward_layernorm",
    "post_norm_2": "post_feedforward_layernorm",
}
POST = {"post_norm_1": BOTH["post_norm_1"], "post_norm_2": BOTH["post_norm_2"]}


def body(norms: Mapping[str, str] = PRE, fused: bool = False) -> Callable[[dict], list[Entry]]:
    """The tensors of a decoder with the names of Llama. norms: {ours: theirs} of a layer's norms.
    fused: queries, keys and values are one tensor, and so are gate and up (Phi-3)."""

    def entries(m: dict) -> list[Entry]:
        d, width = m["d_model"], m["head_dim"]
        heads, kv_heads = (m["n_heads"], width), (m["n_kv_heads"], width)
        qkv = {"query": heads, "key": kv_heads, "value": kv_heads}
        out = plain("embed/embedding", "model.embed_tokens.weight", m["vocab_size"], d)
        for i in range(m["n_layers"]):
            ours, theirs = f"stack/layer_{i}", f"model.layers.{i}"
            linear = lambda name, at, ins, outs, bias=False: dense(
                f"{ours}/{name}", f"{theirs}.{at}_proj", ins, outs, bias=bias
            )
            # In the order of transformers, by which tensors go into shards.
            if fused:
                parts = {f"{ours}/attention/{x}": (d, *shape) for x, shape in qkv.items()}
                out += linear("attention/out", "self_attn.o", heads, d)
                out += side_by_side(parts, f"{theirs}.self_attn.qkv_proj", d)
                parts = {f"{ours}/mlp/{x}": (d, m["d_ff"]) for x in ("gate", "up")}
                out += side_by_side(parts, f"{theirs}.mlp.gate_up_proj", d)
            else:
                for x, shape in qkv.items():
                    out += linear(f"attention/{x}", f"self_attn.{x[0]}", d, shape, m["qkv_bias"])
                out += linear("attention/out", "self_attn.o", heads, d)
                for x in ("query", "key") if m["qk_norm"] else ():
                    n = width if m["qk_norm"] == "head" else qkv[x][0] * width
                    name = f"{theirs}.self_attn.{x[0]}_norm"
                    out += norm(f"{ours}/attention/{x}_norm", name, n, bias=False)
                out += linear("mlp/gate", "mlp.gate", d, m["d_ff"])
                out += linear("mlp/up", "mlp.up", d, m["d_ff"])
            out += linear("mlp/down", "mlp.down", m["d_ff"], d)
            for x, name in norms.items():
                out += norm(f"{ours}/{x}", f"{theirs}.{name}", d, bias=False)
        return out + norm("final_norm", "model.norm", d, bias=False)

    return entries


def side_by_side(parts: dict[str, tuple[int, ...]], theirs: str, d: int) -> list[Entry]:
    """Dense layers from d, {ours: shape of the kernel}, that transformers stores as one layer."""
    outs = sum(math.prod(shape) for shape in parts.values()) // d
    named = tuple((f"{ours}/kernel", shape) for ours, shape in parts.items())
    return [Entry(f"{theirs}.weight", (outs, d), named, (1, 0))]


# --- Families --------------------------------------------------------------------------------


def attention_dropout_note(config: dict) -> list[str]:
    rate = config.get("attention_dropout", 0.0)
    note = "is not supported: attention weights are trained without dropout"
    return [f"attention_dropout={rate} {note}"] if rate else []


def _heads(m: dict, n_labels: int) -> dict[str, list[Entry]]:
    """The output layer, and that of a reward."""
    score = dense("score", "score", m["d_model"], 1, bias=False)
    return {**output_head(m, n_labels), "score": score}


def _read_score(config: dict) -> dict[str, Any]:
    """No field of config.task. Raises UserError for a classifier."""
    if len(names := labels.names_of(config)) != 1:
        raise UserError(
            f"config.json: its {len(names)} outputs are those of a classifier; of decoders with "
            "outputs for a text bigjax supports reward models, which have one (num_labels=1)."
        )
    return {}


_SCORE = labels.named("score/kernel")._replace(read=_read_score)
REWARD = Architecture(("score",), {"name": "reward"}, marker="score", labels=_SCORE)


def family(
    name: str,
    architecture: str,
    fields: tuple[Field, ...],
    fixed: dict[str, Any],
    new_config: Callable[[dict], dict],
    check: Callable[[dict], None] = lambda config: None,
    norms: Mapping[str, str] = PRE,
    fused: bool = False,
    scored: str = "",
    **more: Any,
) -> Family:
    """A family whose tensors have the names of Llama: RMSNorm, rotary positions, a gated MLP.

    scored: the class with outputs for a text, of reward models; '' = by the architecture's name.
    fixed: in addition to these, and to UNUSED for options that are not fields. check: in addition
    to that of options that no decoder of ours has.
    """

    def check_all(config):
        refuse(
            config,
            {
                "attention_bias": (False, None),
                "mlp_bias": (False, None),
                "rope_interleaved": (False, None),
                "no_rope_layers": (None, []),
                "clip_qkv": (None,),
                "use_bidirectional_attention": (None, False),
            },
        )
        check(config)

    common = {"position": "rotary", "norm": "rmsnorm", "bias": False}
    options: dict[str, Any] = dict(
        prefix="model.",
        heads=_heads,
        tied=tied,
        redundant=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",
        head_names=r"(lm_head|score)\.",
        notes=attention_dropout_note,
    )
    architectures = {
        architecture: Architecture(("head",), {"name": "causal_lm"}),
        scored or architecture.replace("CausalLM", "SequenceClassification"): REWARD,
    }
    return Family(
        name=name,
        fields=fields,
        fixed={**unused(fields), **common, **fixed},
        architectures=architectures,
        body=body(norms, fused),
        check=check_all,
        new_config=new_config,
        **{**options, **more},
    )


def tied(m: dict) -> dict[str, str]:
    return {"lm_head.weight": "model.embed_tokens.weight"} if m["tie_embeddings"] else {}
