"""Gemma 2 and the texts of Gemma 3: tensors of transformers' Gemma2ForCausalLM and
Gemma3ForCausalLM, and those of bigjax.models.gpt.

Both have norms with a scale of 1 + weight; our parameters are these weights.
"""

from typing import Any

from bigjax.errors import UserError
from bigjax.interop import decoders, rope
from bigjax.interop.mapping import Field, flag, number, refuse

_SCALAR = number("", "query_pre_attn_scalar", 256)
_LAYERS = number("", "num_hidden_layers", 26)
_FIXED = {
    "activation": "geglu",
    "norm_place": "both",
    "norm_offset": True,
    "embed_scale": True,
}


def _put_scale(config: dict, value: float) -> None:
    config["query_pre_attn_scalar"] = round(value**-2) if value else config["head_dim"]


def _limits(m: dict) -> dict[str, tuple]:
    """query_pre_attn_scalar is a whole number."""
    value = m["query_scale"]
    return {"query_scale": (0.0, round(value**-2) ** -0.5)} if value else {}


def _types_of(config: dict, usual: int) -> tuple[list, str]:
    usual_types = lambda c: decoders.layer_types(_LAYERS.get(c), 1, usual)
    return decoders.given_types(config, usual_types)


def _check(config: dict) -> None:
    refuse(config, {"hidden_activation": ("gelu_pytorch_tanh",)})


_OWN = (
    Field("query_scale", lambda config: _SCALAR.get(config) ** -0.5, _put_scale),
    number("norm_eps", "rms_norm_eps", 1e-6),
    flag("tie_embeddings", "tie_word_embeddings", True),
)
_NEW = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def _check_2(config: dict) -> None:
    _check(config)
    rope.check_complete(config)


GEMMA2 = decoders.family(
    "gemma2",
    "Gemma2ForCausalLM",
    fields=(
        *decoders.sizes(256000, 8192, 2304, 26, 8, 9216, n_kv_heads=4, head_dim=256),
        *rope.fields(),
        *decoders.windows(lambda config: _types_of(config, 2), usual=2, default=4096),
        *_OWN,
        decoders.optional("attention_softcap", "attn_logit_softcapping", 50.0),
        decoders.optional("logit_softcap", "final_logit_softcapping", 30.0),
    ),
    fixed=_FIXED,
    limits=_limits,
    check=_check_2,
    norms=decoders.BOTH,
    new_config=lambda m: {**_NEW, **rope.new_config(m)},
)

# --- Gemma 3 ---------------------------------------------------------------------------------
# transformers 4 has rope_theta, rope_local_base_freq and rope_scaling, of the global layers; 5 has
# rope_parameters for each type of layer.


def _per_type(config: dict) -> dict[str, Any]:
    blocks = config.get("rope_parameters") or {}
    nested = (decoders.LOCAL, decoders.GLOBAL)
    if not isinstance(blocks, dict) or not set(blocks) <= {*nested}:
        refuse(config, {"rope_parameters": (None,)}, f"It must have {' and '.join(nested)}.")
    return {kind: blocks.get(kind) or {} for kind in nested}


def _global(config: dict) -> dict:
    """The settings of global layers in the form of other families."""
    scaling = config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        refuse(config, {"rope_scaling": (None,)}, "It must be an object.")
    block = {"rope_theta": config.get("rope_theta", 1e6), **_per_type(config)[decoders.GLOBAL]}
    return {**config, "rope_scaling": None, "rope_parameters": {**block, **scaling}}


def _of_global(field: Field) -> Field:
    def put(config, value):
        before = _global(config)
        after = dict(before)
        field.put(after, value)
        changed = {
            key: x
            for key, x in after["rope_parameters"].items()
            if before["rope_parameters"].get(key) != x
        }
        theta = changed.pop("rope_theta", None)
        if config.get("rope_parameters"):
            blocks = _per_type(config)
            own = changed if theta is None else {**changed, "rope_theta": theta}
            blocks[decoders.GLOBAL] = {**blocks[decoders.GLOBAL], **own}
            config["rope_parameters"] = blocks
        elif changed:
            config["rope_scaling"] = {**(config.get("rope_scaling") or {}), **changed}
        if theta is not None and ("rope_theta" in config or not config.get("rope_parameters")):
            config["rope_theta"] = theta

    return Field(field.ours, lambda config: field.get(_global(config)), put)


_LOCAL_KEY = "rope_local_base_freq"
_LOCAL_THETA = number("", "rope_theta", 10000.0)


def _get_local_theta(config: dict) -> float:
    block = _per_type(config)[decoders.LOCAL]
    if block.get("rope_type", "default") != "default":
        refuse(config, {"rope_parameters": (None,)}, f"{decoders.LOCAL} must not be scaled.")
    old = {"rope_theta": config[_LOCAL_KEY]} if _LOCAL_KEY in config else {}
    return _LOCAL_THETA.get(block if "rope_theta" in block else old)


def _put_local_theta(config: dict, value: float) -> None:
    if config.get("rope_parameters"):
        blocks = _per_type(config)
        blocks[decoders.LOCAL] = {**blocks[decoders.LOCAL], "rope_theta": value}
        config["rope_parameters"] = blocks
    if _LOCAL_KEY in config or not config.get("rope_parameters"):
        config[_LOCAL_KEY] = value


def _new_config_3(m: dict) -> dict:
    """For transformers 4 and 5, which both read these."""
    new = {**_NEW, "rope_theta": m["rope_theta"], _LOCAL_KEY: m["local_rope_theta"]}
    if m["global_every"]:
        new["sliding_window_pattern"] = m["global_every"]
    scaling = rope.new_config(m).get("rope_scaling")
    return {**new, "rope_scaling": scaling} if scaling else new


def _pattern(config: dict) -> int:
    keys = ("sliding_window_pattern", "_sliding_window_pattern")
    key = next((key for key in keys if key in config), keys[0])
    return number("", key, 6).get(config)


def _check_3(config: dict) -> None:
    _check(config)
    refuse(config, {"attn_logit_softcapping": (None,)})
    rope.check_complete(_global(config))
    rope.check_complete({"rope_parameters": _per_type(config)[decoders.LOCAL]})
    kind = _global(config)["rope_parameters"]
    if kind.get("rope_type", kind.get("type")) == "longrope":
        raise UserError("config.json: rotary positions of type longrope are not supported here.")


def _limits_3(m: dict) -> dict[str, tuple]:
    """Layers with the window have a theta of their own, unless no layer has one."""
    own = {} if m["window"] else {"local_rope_theta": (0.0,)}
    if m["window"] and not m["local_rope_theta"]:
        own = {"local_rope_theta": ("a number above 0",)}
    return {**_limits(m), **own, "rope_scaling": ("", "linear", "llama3")}


_SIZES_3 = decoders.sizes(262_208, 131_072, 2304, 26, 8, 9216, n_kv_heads=4, head_dim=256)
_WINDOW, _EVERY = decoders.windows(
    lambda config: _types_of(config, _pattern(config)), usual=6, default=4096
)
GEMMA3 = decoders.family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    scored="Gemma3TextForSequenceClassification",
    fields=(
        *_SIZES_3,
        *map(_of_global, rope.fields(1e6)),
        _WINDOW,
        _EVERY,
        Field(
            "local_rope_theta",
            lambda config: _get_local_theta(config) if _WINDOW.get(config) else 0.0,
            lambda config, value: _put_local_theta(config, value) if value else None,
        ),
        *_OWN,
        decoders.optional("logit_softcap", "final_logit_softcapping", None),
    ),
    fixed={**_FIXED, "qk_norm": "head"},
    limits=_limits_3,
    check=_check_3,
    norms=decoders.BOTH,
    new_config=_new_config_3,
)
