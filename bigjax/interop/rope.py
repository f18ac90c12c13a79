"""Rotary positions in config.json of transformers: fields for bigjax.models.gpt.

transformers 4 has rope_theta, rope_scaling and partial_rotary_factor; 5 has them all in
rope_parameters, but reads those of 4, and rope_scaling first.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

from bigjax.errors import UserError
from bigjax.interop.mapping import Field, number, number_or, refuse

LEN, _ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
_SCALED = ("linear", "llama3", "longrope")
_NUMBERS = {  # of rope_scaling: our field, its default
    "factor": ("rope_factor", 1.0),
    "low_freq_factor": ("rope_low_factor", 1.0),
    "high_freq_factor": ("rope_high_factor", 4.0),
}
_USED = {"": (), "linear": ("factor",), "llama3": tuple(_NUMBERS), "longrope": ()}


def key_of(config: dict) -> str:
    """The key of config.json that holds the parameters of rotary positions; '' without one."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key):
            if not isinstance(config[key], dict):
                raise UserError(f"config.json: {key} is {config[key]!r}; it must be an object.")
            return key
    return ""


def _block(config: dict) -> dict:
    return config.get(key_of(config)) or {}


def _set(config: dict, key: str, value: Any) -> None:
    name = key_of(config) or "rope_scaling"
    config[name] = {**(config.get(name) or {}), key: value}


def _kind(config: dict) -> str:
    """model.rope_scaling. Raises UserError for another type of rotary positions."""
    block = _block(config)
    kind = block.get("rope_type", block.get("type", "default"))
    if config.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # what versions of Phi-3 before transformers 4.43 call it
    if kind not in ("default", *_SCALED):
        raise UserError(
            f"config.json: {key_of(config)} is {block!r}; supported types of rotary positions "
            f"are default, {', '.join(_SCALED)}. A model with others would compute something else, "
            "so it is not imported."
        )
    return "" if kind == "default" else kind


def _put_kind(config: dict, value: str) -> None:
    if value == _kind(config):
        return
    _set(config, "rope_type", value or "default")
    if "type" in _block(config):
        _set(config, "type", value or "default")


def _put_for(kinds: tuple[str, ...], key: str) -> Callable[[dict, Any], None]:
    """Sets a key of the parameters of rotary positions of these kinds; others have no such key."""

    def put(config, value):
        if _kind(config) in kinds:
            _set(config, key, value)

    return put


def _scaling_number(theirs: str) -> Field:
    ours, default = _NUMBERS[theirs]
    field = number(ours, theirs, default)

    def get(config):
        if theirs not in _USED[_kind(config)]:
            return default
        if theirs not in _block(config):
            raise UserError(f"config.json: {key_of(config)} lacks {theirs}.")
        return field.get(_block(config))

    kinds = tuple(kind for kind, used in _USED.items() if theirs in used)
    return Field(ours, get, _put_for(kinds, theirs))


def _get_original(config: dict) -> int:
    if _kind(config) not in ("llama3", "longrope"):
        return 0
    holder = config if config.get(_ORIGINAL) is not None else _block(config)
    if config.get("model_type") == "phi3":
        holder = {_ORIGINAL: config.get(_ORIGINAL, 4096)}  # which has a default there
    return number_or("", _ORIGINAL, number("", LEN, 1).get).get({LEN: config.get(LEN), **holder})


def _put_original(config: dict, value: int) -> None:
    if _kind(config) not in ("llama3", "longrope"):
        return
    if _ORIGINAL in config or config.get("model_type") == "phi3":
        config[_ORIGINAL] = value
    else:
        _set(config, _ORIGINAL, value)


def _factors(ours: str, theirs: str) -> Field:
    def get(config):
        if _kind(config) != "longrope":
            return ()
        values = _block(config).get(theirs)
        if not isinstance(values, list) or not values:
            raise UserError(f"config.json: {theirs} is {values!r}; it must be a list of numbers.")
        return tuple(number("", theirs, 1.0).get({theirs: value}) for value in values)

    put = _put_for(("longrope",), theirs)
    return Field(ours, get, lambda config, value: put(config, list(value)))


def _get_attention_factor(config: dict) -> float:
    """That of longrope: without a number in config.json it follows from the lengths."""
    block = _block(config)
    if _kind(config) != "longrope":
        return 1.0
    if block.get("attention_factor") is not None:
        return number("", "attention_factor", 1.0).get(block)
    original = _get_original(config)
    factor = block.get("factor")
    if factor is None:
        factor = number("", LEN, 1).get({LEN: config.get(LEN)}) / original
    else:
        factor = number("", "factor", 1.0).get(block)
    return float((1 + math.log(factor) / math.log(original)) ** 0.5) if factor > 1 else 1.0


def _put_attention_factor(config: dict, value: float) -> None:
    if _kind(config) == "longrope" and value != _get_attention_factor(config):
        _set(config, "attention_factor", value)


def put_max_len(config: dict, value: int) -> None:
    """Another max_len does not change what a model computes: what follows from it in config.json is
    written there first."""
    kind = _kind(config)
    if kind in ("llama3", "longrope") and LEN in config:
        _put_original(config, _get_original(config))
        if kind == "longrope":
            _set(config, "attention_factor", _get_attention_factor(config))
    config[LEN] = value


def fields(
    theta: float = 10000.0,
    share: float | None = None,
    theta_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
) -> tuple[Field, ...]:
    """Rotary positions. share: the default share of a head that rotates; None: all of it in every
    model of the family. theta_key, share_key: of transformers 4."""
    base = number("rope_theta", theta_key, theta)
    part = number("rope_share", share_key, share or 1.0)

    def get(field: Field, key: str, old: str):
        def from_config(config):
            block = _block(config)
            return field.get({old: block[key]} if key in block else config)

        return from_config

    def put(key: str, old: str):
        def to_config(config, value):
            if key_of(config) == "rope_parameters" or key in _block(config):
                _set(config, key, value)
            if old in config or not key_of(config):
                config[old] = value

        return to_config

    names = [(base, "rope_theta", theta_key)]
    names += [(part, "partial_rotary_factor", share_key)] if share else []
    return (
        *(Field(f.ours, get(f, key, old), put(key, old)) for f, key, old in names),
        Field("rope_scaling", _kind, _put_kind),
        *map(_scaling_number, _NUMBERS),
        Field("rope_original_len", _get_original, _put_original),
        _factors("rope_short", "short_factor"),
        _factors("rope_long", "long_factor"),
        Field(
            "rope_attention_factor",
            _get_attention_factor,
            _put_attention_factor,
        ),
    )


def check_complete(config: dict) -> None:
    """Raises UserError for heads that rotate in part, in a family that has none."""
    for key in ("rope_scaling", "rope_parameters"):
        block = config.get(key) or {}
        if isinstance(block, dict) and block.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"config.json: {key} is {block!r}; of this model_type only rotary positions over "
                "complete heads are supported."
            )
    refuse(config, {"partial_rotary_factor": (1.0, None)})


def new_config(m: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a new config.json: rope_theta for transformers 4, rope_parameters for 5; with scaled
    positions rope_scaling, which both read."""
    kind = m.get("rope_scaling", "")
    if not kind:
        return {"rope_theta": m["rope_theta"], "rope_parameters": {"rope_type": "default"}}
    block: dict[str, Any] = {"rope_type": kind}
    block |= {theirs: m[_NUMBERS[theirs][0]] for theirs in _USED[kind]}
    if kind in ("llama3", "longrope"):
        block[_ORIGINAL] = m["rope_original_len"]
    if kind == "longrope":
        block |= {"short_factor": list(m["rope_short"]), "long_factor": list(m["rope_long"])}
    return {"rope_theta": m["rope_theta"], "rope_scaling": block}
