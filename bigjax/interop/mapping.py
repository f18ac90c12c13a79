"""What a family's table is made of: fields of config.json, and tensors, both ways from one row."""

from collections.abc import Callable
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from bigjax.errors import UserError

# --- Fields of config.json -------------------------------------------------------------------


class Field(NamedTuple):
    """One number or choice: our name, get(their config) -> ours, put(their config, value)."""

    ours: str
    get: Callable[[dict], Any]
    put: Callable[[dict, Any], None]


def number(ours: str, theirs: str, default: int | float, *also: str) -> Field:
    """A number of the same meaning; default: transformers' own, for configs that leave it out.

    also: more keys of theirs that get the value when it is written.
    """
    kind = type(default)

    def get(config):
        value = config.get(theirs, default)
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        finite = type(value) is kind and (kind is int or math.isfinite(value))
        if not finite or kind is int and value < 1:
            raise UserError(
                f"config.json: {theirs} is {value!r}; it has to be a "
                f"{'positive whole number' if kind is int else 'number'}."
            )
        return value

    def put(config, value):
        config.update(dict.fromkeys((theirs, *also), value))

    return Field(ours, get, put)


def flag(ours: str, theirs: str, default: bool) -> Field:
    """True or False."""

    def get(config):
        value = config.get(theirs, default)
        if value is not None and not isinstance(value, bool):
            raise UserError(
                f"config.json: {theirs} is {value!r}; it has to be true or false, without quotes."
            )
        return bool(value)  # null is false, as in transformers

    return Field(ours, get, lambda config, value: config.update({theirs: value}))


def choice(ours: str, theirs: str, default: str, names: dict[str, str]) -> Field:
    """One of names, {theirs: ours}; the first of those that mean ours is written."""

    def get(config):
        value = config.get(theirs, default)
        if not isinstance(value, str) or value not in names:
            raise UserError(
                f"config.json: {theirs} is {value!r}, which no model here has; "
                f"allowed: {', '.join(names)}."
            )
        return names[value]

    return Field(
        ours,
        get,
        lambda config, value: config.update(
            {theirs: next(t for t, o in names.items() if o == value)}
        ),
    )


# --- Tensors ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One tensor of theirs and the parameters it holds, side by side along its last axis.

    name, shape: theirs. parts: ((our name, our shape), ...). transposed: theirs is [out, in], as
    torch's Linear; ours is always [in..., out...], and may split in and out into heads.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False

    def to_ours(self, x: np.ndarray) -> dict[str, np.ndarray]:
        x = x.T if self.transposed else x
        pieces = np.split(x, len(self.parts), axis=-1)
        return {ours: piece.reshape(shape) for piece, (ours, shape) in zip(pieces, self.parts)}

    def gather(self, params) -> np.ndarray:
        """The tensor of parameters by name. UserError if a shape is not the config's."""
        arrays = {name: np.asarray(params[name]) for name, _ in self.parts}
        for name, shape in self.parts:
            if arrays[name].shape != shape:
                raise UserError(
                    f"{name} has the shape {arrays[name].shape}; the config makes it {shape}."
                )
        return self.to_theirs(arrays)

    def to_theirs(self, params) -> np.ndarray:
        matrix = self.shape[::-1] if self.transposed else self.shape
        part = (*matrix[:-1], matrix[-1] // len(self.parts))
        x = [np.asarray(params[ours]).reshape(part) for ours, _ in self.parts]
        x = x[0] if len(x) == 1 else np.concatenate(x, axis=-1)
        return x.T if self.transposed else x


def plain(ours: str, theirs: str, *shape: int) -> list[Entry]:
    """The same array."""
    return [Entry(theirs, shape, ((ours, shape),))]


def dense(
    ours: str, theirs: str, ins, outs, *, bias: bool = True, transposed: bool = True
) -> list[Entry]:
    """A dense layer with its bias; ins, outs: sizes, or tuples of them where heads are apart."""
    return fused((ours,), theirs, ins, outs, bias=bias, transposed=transposed)


def fused(
    ours: tuple[str, ...], theirs: str, ins, outs, *, bias: bool = True, transposed: bool = False
) -> list[Entry]:
    """Dense layers of equal shapes that are one layer of theirs."""
    ins, outs = (x if isinstance(x, tuple) else (x,) for x in (ins, outs))
    shape = math.prod(ins), len(ours) * math.prod(outs)
    entries = [
        Entry(
            f"{theirs}.weight",
            shape[::-1] if transposed else shape,
            tuple((f"{o}/kernel", ins + outs) for o in ours),
            transposed,
        )
    ]
    if bias:
        entries.append(Entry(f"{theirs}.bias", shape[1:], tuple((f"{o}/bias", outs) for o in ours)))
    return entries


def norm(ours: str, theirs: str, d: int, bias: bool = True) -> list[Entry]:
    """A scale and, in LayerNorm, a bias."""
    return plain(f"{ours}/scale", f"{theirs}.weight", d) + (
        plain(f"{ours}/bias", f"{theirs}.bias", d) if bias else []
    )


# --- Families --------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """A class of transformers. heads: tables it has on top of the body; bare: the class of the
    body alone, whose tensors have no prefix; task: of config.task."""

    heads: tuple[str, ...]
    task: dict[str, Any]
    bare: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type of transformers.

    model: config.model.name of ours. fixed: values of our Config that all of them have (on the way
    out they are conditions). prefix: of the body's tensors, where there is a head. body, heads:
    model dict, n_labels -> entries (heads by name, in order). tied: model dict -> {tensor: the one
    it is a copy of}. redundant: regex of tensors that hold no weights. renamed: (regex,
    replacement) for names that older versions wrote. head_names: regex of tensors outside the body.
    check: refuses a config.json of a model that we do not have. notes: config.json -> what of it
    has no place here but does not change what the weights compute. new_config: keys of a
    config.json that fields do not write. limits: model dict -> {key: values it may have}, beyond
    fixed. extra: heads that a folder of another architecture may have besides its own.
    """

    name: str
    model: str
    fixed: dict[str, Any]
    fields: tuple[Field, ...]
    prefix: str
    architectures: dict[str, Architecture]
    body: Callable[[dict], list[Entry]]
    heads: Callable[[dict, int], dict[str, list[Entry]]]
    tied: Callable[[dict], dict[str, str]]
    redundant: str
    head_names: str
    check: Callable[[dict], None]
    notes: Callable[[dict], list[str]]
    new_config: Callable[[dict], dict]
    renamed: tuple[tuple[str, str], ...] = ()
    limits: Callable[[dict], dict[str, tuple]] = lambda model: {}
    extra: tuple[str, ...] = ()

    def misfits(self, model: dict) -> list[str]:
        """What keeps a model of ours from being one of this family: 'model.KEY=VALUE (...)'."""
        allowed = {k: (v,) for k, v in self.fixed.items()} | self.limits(model)
        return [
            f"model.{k}={model[k]!r} (has to be {' or '.join(map(repr, values))})"
            for k, values in allowed.items()
            if model[k] not in values
        ]

    def model_fields(self, config: dict) -> dict[str, Any]:
        """config.model from config.json. Raises UserError, naming the key, if we have no such
        model."""
        refuse(config, {"quantization_config": (None,)})
        self.check(config)
        return {"name": self.model, **self.fixed, **{f.ours: f.get(config) for f in self.fields}}

    def put_fields(self, model: dict, config: dict | None) -> dict:
        """config.json from config.model: the original with what differs, or a new one."""
        new = {"model_type": self.name, **self.new_config(model)}
        out = new if config is None else dict(config)
        for field in self.fields:
            if config is None or field.get(config) != model[field.ours]:
                field.put(out, model[field.ours])
        return out

    def canonical(self, name: str) -> str:
        """A tensor's name with the body's prefix, old spellings replaced."""
        for old, new in self.renamed:
            name = re.sub(old, new, name)
        if name.startswith(self.prefix) or re.match(self.head_names, name):
            return name
        return self.prefix + name

    def entries(self, architecture: str, model: dict, n_labels: int) -> list[Entry]:
        """The tensors that this architecture has, with the body's prefix."""
        heads = self.heads(model, n_labels)
        return self.body(model) + [
            e
            for name in heads
            if name in self.architectures[architecture].heads
            for e in heads[name]
        ]

    def others(self, architecture: str, model: dict, n_labels: int) -> list[Entry]:
        """The tensors of heads that it may have besides."""
        heads = self.heads(model, n_labels)
        return [
            e
            for name in self.extra
            if name not in self.architectures[architecture].heads
            for e in heads[name]
        ]

    def written_name(self, architecture: str, name: str) -> str:
        bare = self.architectures[architecture].bare
        return name.removeprefix(self.prefix) if bare else name


def refuse(config: dict, allowed: dict[str, tuple], why: str = "") -> None:
    """Raises UserError for a key of config.json whose value is not among the allowed; the first
    of them is what an absent key means."""
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            raise UserError(
                f"config.json: {key} is {config[key]!r}; the models here only have "
                f"{' or '.join(map(repr, values))}. {why or 'A model with it cannot be imported.'}"
            )


def needs_division(model: dict, width: str, heads: str) -> None:
    if model["d_model"] % model["n_heads"]:
        raise UserError(
            f"config.json: {width}={model['d_model']} does not divide into {heads}="
            f"{model['n_heads']}."
        )
