"""Rows of a family's table: fields of config.json and tensors, each used in both directions."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from bigjax.errors import UserError
from bigjax.interop.labels import Labels, unnamed

# --- Fields of config.json -------------------------------------------------------------------


class Field(NamedTuple):
    """One setting: our name, get(their config) -> our value, put(their config, our value)."""

    ours: str
    get: Callable[[dict], Any]
    put: Callable[[dict, Any], None]


def number(ours: str, theirs: str, default: int | float, *also: str) -> Field:
    """A number with the same meaning in both; default: that of transformers, for absent keys.

    also: more of their keys that are set to the value when it is written.
    """
    kind = type(default)

    def get(config):
        value = config.get(theirs, default)
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        finite = type(value) is kind and (kind is int or math.isfinite(value))
        if not finite or kind is int and value < 1:
            raise UserError(
                f"config.json: {theirs} is {value!r}; it must be a "
                f"{'positive integer' if kind is int else 'finite number'}."
            )
        return value

    def put(config, value):
        config.update(dict.fromkeys((theirs, *also), value))

    return Field(ours, get, put)


def number_or(ours: str, theirs: str, default: Callable[[dict], int]) -> Field:
    """A number that is default(config) where it is absent or null."""
    field = number(ours, theirs, 1)
    return Field(ours, lambda c: default(c) if c.get(theirs) is None else field.get(c), field.put)


def flag(ours: str, theirs: str, default: bool) -> Field:
    """A setting that is true or false."""

    def get(config):
        value = config.get(theirs, default)
        if value is not None and not isinstance(value, bool):
            raise UserError(
                f"config.json: {theirs} is {value!r}; it must be true or false, without quotes."
            )
        return bool(value)  # null is false, as in transformers

    return Field(ours, get, lambda config, value: config.update({theirs: value}))


def token_id(ours: str, theirs: str, other: str, default: int) -> Field:
    """The id of a token; that of the key `other` where it is absent or null."""

    def get(config):
        key = theirs if config.get(theirs) is not None else other
        value = config.get(key, default)
        if type(value) is not int or value < 0:
            raise UserError(f"config.json: {key} is {value!r}; it must be the id of a token.")
        return value

    return Field(ours, get, lambda config, value: config.update({theirs: value}))


def choice(ours: str, theirs: str, default: str, names: Mapping[str, Any]) -> Field:
    """One of several names, {theirs: our value}; of those with the same meaning the first is
    written."""

    def get(config):
        value = config.get(theirs, default)
        if not isinstance(value, str) or value not in names:
            raise UserError(
                f"config.json: {theirs} is {value!r}, which bigjax does not "
                f"support; allowed: {', '.join(names)}."
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
    """A tensor of transformers and the parameters it holds, concatenated along an axis.

    name, shape: of the tensor. parts: ((our name, our shape), ...). axes: of the tensor, in our
    order, () if it is the same: (1, 0) for [out, in], as in torch's Linear; our kernels are always
    [in..., out...], where in and out may be split into heads. along: the axis, in our order, along
    which parts are concatenated. code: of the dtype of a tensor without parts, see `unused`. view:
    the tensor's shape in our order, if parts are concatenated along a part of one of its axes.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    axes: tuple[int, ...] = ()
    along: int = -1
    code: str = ""
    view: tuple[int, ...] = ()

    def _part_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each part in the tensor, in our order of axes."""
        ours = [*self._view()]
        rest = math.prod(self.shape) // ours[self.along] if ours else 1
        shapes = []
        for _, shape in self.parts:
            if ours:
                ours[self.along] = math.prod(shape) // rest
            shapes.append(tuple(ours))
        return shapes

    def _view(self) -> tuple[int, ...]:
        return self.view or self._transposed()

    def _transposed(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.axes) or self.shape

    def to_ours(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """{our name: array} from the tensor."""
        x = x.transpose(self.axes) if self.axes else x
        x = x.reshape(self._view())
        if len(self.parts) == 1:
            ((ours, shape),) = self.parts
            return {ours: x.reshape(shape)}
        ends = np.cumsum([shape[self.along] for shape in self._part_shapes()])
        pieces = np.split(x, ends[:-1], axis=self.along)
        return {ours: piece.reshape(shape) for piece, (ours, shape) in zip(pieces, self.parts)}

    def gather(self, params) -> np.ndarray:
        """The tensor from parameters by name. UserError if a shape is not that of the config."""
        arrays = {name: np.asarray(params[name]) for name, _ in self.parts}
        for name, shape in self.parts:
            if arrays[name].shape != shape:
                raise UserError(
                    f"{name} has shape {arrays[name].shape}, but by the config it must be {shape}."
                )
        return self.to_theirs(arrays)

    def to_theirs(self, params) -> np.ndarray:
        """The tensor from {our name: array}."""
        pairs = zip(self.parts, self._part_shapes())
        x = [np.asarray(params[name]).reshape(shape) for (name, _), shape in pairs]
        x = x[0] if len(x) == 1 else np.concatenate(x, axis=self.along)
        x = x.reshape(self._transposed())
        return x.transpose(np.argsort(self.axes)) if self.axes else x


def plain(ours: str, theirs: str, *shape: int) -> list[Entry]:
    """A tensor that is the same array in both."""
    return [Entry(theirs, shape, ((ours, shape),))]


def unused(theirs: str, code: str, *shape: int) -> list[Entry]:
    """A tensor that no parameter of ours corresponds to: kept by an export of the unchanged import,
    zeros in others. code: of its dtype, as in safetensors; 'F32': that of the export."""
    return [Entry(theirs, shape, (), code=code)]


def reshaped(
    ours: str, theirs: str, shape: tuple[int, ...], their_shape: tuple[int, ...]
) -> list[Entry]:
    """A tensor of the same numbers in the same order."""
    return [Entry(theirs, their_shape, ((ours, shape),))]


def dense(
    ours: str, theirs: str, ins, outs, *, bias: bool = True, transposed: bool = True
) -> list[Entry]:
    """A dense layer; ins, outs: sizes, or tuples of sizes where heads have their own axis."""
    return fused((ours,), theirs, ins, outs, bias=bias, transposed=transposed)


def fused(
    ours: tuple[str, ...], theirs: str, ins, outs, *, bias: bool = True, transposed: bool = False
) -> list[Entry]:
    """Dense layers of equal shapes that transformers stores as one layer."""
    ins, outs = (x if isinstance(x, tuple) else (x,) for x in (ins, outs))
    shape = math.prod(ins), len(ours) * math.prod(outs)
    entries = [
        Entry(
            f"{theirs}.weight",
            shape[::-1] if transposed else shape,
            tuple((f"{o}/kernel", ins + outs) for o in ours),
            (1, 0) if transposed else (),
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


def convolution(
    ours: str,
    theirs: str,
    window: tuple[int, ...],
    ins: int,
    outs: int,
    bias: bool = True,
    flat: bool = False,
) -> list[Entry]:
    """A convolution: theirs [out, in, window...], ours [window..., in, out], as of flax.linen.Conv;
    flat: [window * in, out], as of bigjax.layers.conv.Conv."""
    axes = (*range(2, 2 + len(window)), 1, 0)
    shape = (math.prod(window) * ins, outs) if flat else (*window, ins, outs)
    part = (f"{ours}/kernel", shape)
    kernel = Entry(f"{theirs}.weight", (outs, ins, *window), (part,), axes)
    return [kernel, *(plain(f"{ours}/bias", f"{theirs}.bias", outs) if bias else [])]


def batch_norm(ours: str, theirs: str, d: int) -> list[Entry]:
    """A scale, a bias, the running statistics and torch's number of steps."""
    return [
        *norm(ours, theirs, d),
        *plain(f"batch_stats/{ours}/mean", f"{theirs}.running_mean", d),
        *plain(f"batch_stats/{ours}/var", f"{theirs}.running_var", d),
        *unused(f"{theirs}.num_batches_tracked", "I64"),
    ]


def output_head(m: dict, n_labels: int, theirs: str = "lm_head") -> dict[str, list[Entry]]:
    """Family.heads of a decoder: the output layer, unless it is the token embedding."""
    del n_labels
    if m["tie_embeddings"]:
        return {"head": []}
    return {"head": dense("head", theirs, m["d_model"], m["vocab_size"], bias=False)}


# --- Families --------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """A class of transformers.

    heads: their names in Family.heads. task: config.task. bare: the class has only the body, and
    its tensors have no prefix. marker: the head by which an export chooses this class, the first
    with it; '': chosen if no other class of the family is. labels: of a classifier.
    """

    heads: tuple[str, ...]
    task: dict[str, Any]
    bare: bool = False
    marker: str = ""
    labels: Labels | None = None

    def task_fields(self, config: dict) -> dict[str, Any]:
        """config.task from config.json."""
        return {**self.task, **(self.labels.read(config) if self.labels else {})}

    def labelled(self, task: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """config.task of these parameters: with a name for each output of a classifier.

        params: {our name: array}. Unchanged for a class without labels.
        """
        if not self.labels or self.labels.parameter not in params:
            return dict(task)
        n, names = params[self.labels.parameter].shape[-1], tuple(task.get("labels", ()))
        return {**task, "labels": names if len(names) == n else unnamed(n)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type of transformers. The module of config.model names its own as HUGGING_FACE.

    fixed: values of our Config that all models of the family have, which an export requires.
    fields: the other settings.
    prefix: of the names of the body's tensors in classes with a head. body, heads: model dict,
        n_labels -> entries (heads: by name, in order). tied: model dict -> {tensor: the tensor
        that it is a copy of}. redundant: regex of tensors that hold no weights. head_names: regex
        of tensors outside the body. renamed: (regex, replacement) for names of older versions.
    check: raises UserError for a config.json of an unsupported model. notes: config.json ->
        messages about settings that bigjax does not have and that do not change what the weights
        compute. new_config: keys of a new config.json that fields do not write.
    limits: model dict -> {key: allowed values}, in addition to fixed. extra: heads that a folder
        may have in addition to those of its architecture.
    special_tokens: those whose ids are in config.json, as KIND_token_id. appends_eos: a text ends
        with eos and has no bos. export_notes: class, config.task -> messages about an export.
    alternatives: model dict -> tensors of other versions that hold parameters of the body in
        another form.
    zeros: model dict -> {our name: shape} of parameters that are 0 in models of the family.
    by_tensors: config.json, names of tensors -> fields of our Config that only both determine.
    pixels: (mean, standard deviation) by which the family's models normalise images if their
        folder does not say it; () for a family of text.
    files: model dict, {name: content} of the import's files -> those to write beside the tensors
        of a model that was trained, in addition or in their place.
    """

    name: str
    fields: tuple[Field, ...]
    architectures: dict[str, Architecture]
    body: Callable[[dict], list[Entry]]
    heads: Callable[[dict, int], dict[str, list[Entry]]] = lambda model, n_labels: {}
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    tied: Callable[[dict], dict[str, str]] = lambda model: {}
    redundant: str = "(?!)"  # nothing
    head_names: str = "(?!)"
    check: Callable[[dict], None] = lambda config: None
    notes: Callable[[dict], list[str]] = lambda config: []
    new_config: Callable[[dict], dict] = lambda model: {}
    renamed: tuple[tuple[str, str], ...] = ()
    limits: Callable[[dict], dict[str, tuple]] = lambda model: {}
    extra: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ("bos", "eos", "pad")
    appends_eos: bool = False
    export_notes: Callable[[str, Mapping[str, Any]], list[str]] = lambda architecture, task: []
    alternatives: Callable[[dict], list[Entry]] = lambda model: []
    zeros: Callable[[dict], dict[str, tuple[int, ...]]] = lambda model: {}
    by_tensors: Callable[[dict, Iterable[str]], dict[str, Any]] = lambda config, names: {}
    pixels: tuple[tuple[float, ...], ...] = ()
    files: Callable[[Mapping[str, Any], Mapping[str, bytes]], dict[str, bytes]] = (
        lambda model, originals: {}
    )

    def misfits(self, model: dict) -> list[str]:
        """Why a model of ours is not one of this family: 'model.KEY=VALUE (must be ...)'."""
        allowed = {k: (v,) for k, v in self.fixed.items()} | self.limits(model)
        return [
            f"model.{k}={model[k]!r} (must be {' or '.join(map(repr, values))})"
            for k, values in allowed.items()
            if model[k] not in values
        ]

    def model_fields(self, config: dict) -> dict[str, Any]:
        """Fields of config.model from config.json. Raises UserError, naming the key, for an
        unsupported model."""
        refuse(config, {"quantization_config": (None,)})
        self.check(config)
        return {**self.fixed, **{f.ours: f.get(config) for f in self.fields}}

    def put_fields(self, model: dict, config: dict | None) -> dict:
        """config.json from config.model: the original with the changed keys, or a new one."""
        new = {"model_type": self.name, **self.new_config(model)}
        out = new if config is None else dict(config)
        for field in self.fields:
            if config is None or field.get(config) != model[field.ours]:
                field.put(out, model[field.ours])
        return out

    def architecture_of(self, names: Iterable[str]) -> str:
        """The class that has these parameters (by our names), decided by their heads."""
        heads = {name.split("/")[0] for name in names}
        default = next(name for name, a in self.architectures.items() if not a.marker)
        return next((n for n, a in self.architectures.items() if a.marker in heads), default)

    def canonical(self, name: str) -> str:
        """A tensor's name with the body's prefix and today's spelling."""
        for old, new in self.renamed:
            name = re.sub(old, new, name)
        if name.startswith(self.prefix) or re.match(self.head_names, name):
            return name
        return self.prefix + name

    def entries(self, architecture: str, model: dict, n_labels: int) -> list[Entry]:
        """The tensors of this architecture, with the body's prefix."""
        heads = self.heads(model, n_labels)
        return self.body(model) + [
            e
            for name in heads
            if name in self.architectures[architecture].heads
            for e in heads[name]
        ]

    def others(self, architecture: str, model: dict, n_labels: int) -> list[Entry]:
        """Further tensors that a folder of this architecture may have: of other heads, and those of
        other versions."""
        heads = self.heads(model, n_labels)
        return self.alternatives(model) + [
            e
            for name in self.extra
            if name not in self.architectures[architecture].heads
            for e in heads[name]
        ]

    def written_name(self, architecture: str, name: str) -> str:
        """The name of a tensor in a folder of this architecture."""
        bare = self.architectures[architecture].bare
        return name.removeprefix(self.prefix) if bare else name


def refuse(config: dict, allowed: dict[str, tuple], why: str = "") -> None:
    """Raises UserError for a key of config.json whose value is not allowed; the first allowed
    value is the default of an absent key."""
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            raise UserError(
                f"config.json: {key} is {config[key]!r}; bigjax only supports "
                f"{' or '.join(map(repr, values))}. {why or 'Such a model cannot be imported.'}"
            )


def needs_division(model: dict, width: str, heads: str) -> None:
    """Raises UserError, with their names of the keys, if the width does not divide into heads."""
    if model["d_model"] % model["n_heads"]:
        raise UserError(
            f"config.json: {width}={model['d_model']} does not divide into {heads}="
            f"{model['n_heads']}."
        )
