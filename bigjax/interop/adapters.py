"""LoRA adapters in the format of Hugging Face's `peft`: adapter_config.json beside
adapter_model.safetensors, with transformers' names of the layers.

A layer of theirs that fuses several of ours, such as GPT-2's c_attn, has one pair of factors. Ours
are stacked in it: A has the rows of all, and B is block-diagonal. One pair for all of ours, as
`peft` trains it, is written as one pair again while our layers share A.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from bigjax.errors import UserError
from bigjax.interop import files, storage
from bigjax.interop.files import new_folder
from bigjax.interop.mapping import Entry, Family

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ORIGIN = "adapter.json"  # in a work folder: the config and the header of an imported adapter
A, B, MAGNITUDE = "lora_a/kernel", "lora_b/kernel", "lora_magnitude"  # of bigjax.peft.lora
_PREFIX = "base_model.model."
_THEIRS = {A: "lora_A.weight", B: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
_TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "classify": "SEQ_CLS",
    "tag": "TOKEN_CLS",
    "answer": "QUESTION_ANS",
}
# Layers of a family whose names in transformers 5, which an adapter has, differ from those of the
# tensors in a model's folder: (regex, replacement).
_RENAMED = {
    "vit": (
        (r"^vit\.encoder\.layer\.", "vit.layers."),
        (r"\.attention\.attention\.query$", ".attention.q_proj"),
        (r"\.attention\.attention\.key$", ".attention.k_proj"),
        (r"\.attention\.attention\.value$", ".attention.v_proj"),
        (r"\.attention\.output\.dense$", ".attention.o_proj"),
        (r"\.intermediate\.dense$", ".mlp.fc1"),
        (r"\.output\.dense$", ".mlp.fc2"),
    )
}
# Keys that say nothing about what the adapter computes, or that `read` uses. All others must be
# absent, null, false, 0 or empty: they change the model in ways that bigjax does not have.
_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
_IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "revision"),
    *("megatron_core", "peft_version", "qalora_group_size", "target_modules", "task_type"),
)
_INITIAL = (True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights


class Adapter(NamedTuple):
    """options: fields of peft.lora.Config. layers: our paths, as of scan=False. params: {our name:
    flat array, [inputs, rank], [rank, outputs] or [outputs]}. config, header: texts of the files.
    """

    options: dict[str, Any]
    layers: list[str]
    params: dict[str, np.ndarray]
    config: str
    header: str


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter of `peft`."""
    return "://" not in str(folder) and (pathlib.Path(folder).expanduser() / CONFIG).is_file()


def read(folder: str | os.PathLike, family: Family, architecture: str, model: Mapping) -> Adapter:
    """The adapter in a folder, for a base of this class.

    Raises UserError, naming the key or the tensor, for what bigjax does not have or the base lacks.
    """
    path = files.local(folder)
    config = files.read_json(path / CONFIG, "an adapter's config, a JSON object")
    options = _options(config, path)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path} has no {WEIGHTS}, so it holds no adapter's weights.")
    try:
        header = storage.read_header(path / WEIGHTS)
        stored = storage.parts(header)
    except (OSError, ValueError) as e:
        raise files.damaged(path / WEIGHTS, e) from None
    params: dict[str, np.ndarray] = {}
    layers: list[str] = []
    left = {name: _place(family, name) for name in stored}
    for theirs, entry in _modules(family, architecture, model).items():
        names = {kind: n for n, (module, kind) in left.items() if module == theirs and kind}
        if not {A, B} <= {*names}:
            continue
        own = {k: _read(path / WEIGHTS, header, stored[n], n) for k, n in names.items()}
        left = {n: place for n, place in left.items() if n not in names.values()}
        for ours, part in _from_theirs(entry, own, options["rank"], names).items():
            layers.append(ours)
            params |= {f"{ours}/{k}": x for k, x in part.items()}
    if left:
        raise UserError(
            f"{path / WEIGHTS} has {len(left)} tensors that are not LoRA's factors for layers of "
            f"{architecture}: {', '.join([*left][:5])}. The adapter belongs to another base, or "
            "trains more than bigjax imports."
        )
    return Adapter(options, layers, params, (path / CONFIG).read_text(encoding="utf-8"), header)


def write(
    folder: str | os.PathLike,
    *,
    family: Family,
    architecture: str,
    model: Mapping[str, Any],
    task: str,
    base: str,
    options: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    origin: Mapping[str, str] | None = None,
) -> list[str]:
    """Writes the folder of an adapter; returns the names of its files.

    options: of peft.lora.Config. params: {our name: array}, as of scan=False. origin: 'config' and
    'header' of the unchanged import, whose files are written again. Raises UserError for parameters
    without a place in the format.
    """
    rest = set(params)
    planned: dict[tuple[str, str], np.ndarray] = {}
    scales: dict[str, int] = {}  # {their layer: the number of stacked pairs}
    conv1d = False
    for theirs, entry in _modules(family, architecture, model).items():
        pairs = [name.removesuffix("/kernel") for name, _ in entry.parts]
        own = {ours for ours in pairs if f"{ours}/{A}" in params}
        if not own:
            continue
        conv1d |= not entry.axes
        factors = {ours: _flat(params, ours) for ours in own}
        rest -= {f"{ours}/{k}" for ours in own for k in factors[ours]}
        joined = _to_theirs(entry, pairs, factors, theirs)
        scales[theirs] = joined[A].shape[1] // options["rank"]
        planned |= {(theirs, k): x if k == MAGNITUDE else x.T for k, x in joined.items()}
    if rest:
        raise UserError(
            f"The format of peft has no place for {len(rest)} parameters of this run: "
            f"{', '.join(sorted(rest)[:5])}. Export the merged model instead (without --adapter)."
        )
    own_config = _config(family, architecture, model, task, base, options, scales, conv1d)
    named = {f"{_PREFIX}{theirs}.{_THEIRS[kind]}": x for (theirs, kind), x in planned.items()}
    header = origin["header"] if origin else _header(named)
    codes = {name: part.code for name, part in storage.parts(header).items()}

    def load(name: str) -> np.ndarray:
        x = planned[_place(family, name)]
        return storage.as_bytes(files.cast(name, x, files.CODES[codes[name]]))

    with new_folder(folder) as temporary:
        text = origin["config"] if origin else json.dumps(own_config, indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        storage.write(temporary / WEIGHTS, header, load)
    return [CONFIG, WEIGHTS]


def _options(config: dict, path: pathlib.Path) -> dict[str, Any]:
    refused = [
        key
        for key, value in config.items()
        if key not in (*_READ, *_IGNORED, "init_lora_weights") and value
    ]
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path / CONFIG}: peft_type is {config.get('peft_type')!r}; bigjax imports 'LORA'."
        )
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if config.get("init_lora_weights", True) not in _INITIAL:
        refused.append("init_lora_weights")
    if refused:
        values = ", ".join(f"{key}={config[key]!r}" for key in refused)
        raise UserError(
            f"{path / CONFIG}: bigjax has no counterpart of {values}. Merge the adapter into its "
            "base with peft (merge_and_unload), and import the model."
        )
    return {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "dropout": float(config.get("lora_dropout", 0.0)),
        "rank_stabilized": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
    }


def _module(family: Family, name: str) -> str:
    """The name of a layer as a module of transformers, from that of its tensor."""
    for old, new in _RENAMED.get(family.name, ()):
        name = re.sub(old, new, name)
    return name


def _place(family: Family, tensor: str) -> tuple[str, str]:
    """(their name of the layer, with the prefix of the body; A, B or MAGNITUDE, '' for another)."""
    for ours, their in _THEIRS.items():
        if tensor.startswith(_PREFIX) and tensor.endswith(f".{their}"):
            module = tensor[len(_PREFIX) : -len(their) - 1]
            name = family.canonical(f"{module}.weight").removesuffix(".weight")
            return _module(family, name), ours
    return tensor, ""


def _modules(family: Family, architecture: str, model: Mapping) -> dict[str, Entry]:
    """{their name of a dense layer, with the prefix of the body: its row}."""
    return {
        _module(family, e.name.removesuffix(".weight")): e
        for e in family.entries(architecture, dict(model), 2)
        if e.name.endswith(".weight")
        and len(e.shape) == 2
        and e.parts
        and all(name.endswith("/kernel") for name, _ in e.parts)
    }


def _sizes(entry: Entry) -> tuple[int, list[int]]:
    """(inputs, outputs of each part)."""
    inputs = entry.shape[1] if entry.axes else entry.shape[0]
    return inputs, [math.prod(shape) // inputs for _, shape in entry.parts]


def _read(path: pathlib.Path, header: str, part: storage.Part, name: str) -> np.ndarray:
    if part.code not in files.CODES:
        raise UserError(
            f"{path}: tensor {name} has the dtype {part.code}; allowed: {', '.join(files.CODES)}."
        )
    raw = storage.read(path, header, part)
    return raw.view(files.DTYPES[files.CODES[part.code]]).reshape(part.shape).astype(np.float32)


def _from_theirs(entry: Entry, own: dict, rank: int, names: dict) -> dict[str, dict]:
    """{our layer: {A, B, MAGNITUDE: flat array}}."""
    inputs, outputs = _sizes(entry)
    wanted = {A: (rank, inputs), B: (sum(outputs), rank)}
    for kind, shape in wanted.items():
        if own[kind].shape != shape:
            raise UserError(
                f"{names[kind]} has the shape {own[kind].shape}; by the config and the base it "
                f"must be {shape}. The adapter belongs to another base."
            )
    ends = np.cumsum(outputs)[:-1]
    b = np.split(own[B].T, ends, axis=1)
    magnitudes: list = [None] * len(b)
    if MAGNITUDE in own:
        magnitudes = np.split(own[MAGNITUDE].reshape(-1), ends)
    out = {}
    for (name, _), b_part, magnitude in zip(entry.parts, b, magnitudes):
        ours = {A: own[A].T, B: b_part}
        out[name.removesuffix("/kernel")] = (
            ours if magnitude is None else {**ours, MAGNITUDE: magnitude}
        )
    return out


def _flat(params: Mapping[str, np.ndarray], ours: str) -> dict[str, np.ndarray]:
    a, b = np.asarray(params[f"{ours}/{A}"]), np.asarray(params[f"{ours}/{B}"])
    flat = {A: a.reshape(-1, a.shape[-1]), B: b.reshape(len(b), -1)}
    if f"{ours}/{MAGNITUDE}" in params:
        flat[MAGNITUDE] = np.asarray(params[f"{ours}/{MAGNITUDE}"]).reshape(-1)
    return flat


def _to_theirs(entry: Entry, pairs: list[str], factors: dict, theirs: str) -> dict:
    """{A: [inputs, ranks], B: [ranks, outputs], MAGNITUDE: [outputs]} of a layer of theirs."""
    own = [factors[ours] for ours in pairs if ours in factors]
    if any(MAGNITUDE in x for x in own) and (len(own) < len(pairs) or not entry.axes):
        raise UserError(
            f"The format of peft has no place for DoRA on a part of {theirs}, or on its kind of "
            "layer. Export the merged model instead (without --adapter)."
        )
    magnitude = (
        {MAGNITUDE: np.concatenate([x[MAGNITUDE] for x in own])} if MAGNITUDE in own[0] else {}
    )
    if len(own) == len(pairs) and all(np.array_equal(x[A], own[0][A]) for x in own):
        return {A: own[0][A], B: np.concatenate([x[B] for x in own], axis=1), **magnitude}
    rank, (_, outputs) = own[0][A].shape[1], _sizes(entry)
    b = np.zeros((rank * len(own), sum(outputs)), np.float32)
    row, column = 0, 0
    for ours, n in zip(pairs, outputs):
        if ours in factors:
            b[row : row + rank, column : column + n] = factors[ours][B]
            row += rank
        column += n
    return {A: np.concatenate([x[A] for x in own], axis=1), B: b, **magnitude}


def _header(named: Mapping[str, np.ndarray]) -> str:
    tensors = [(name, "F32", x.shape, 4 * x.size) for name, x in named.items()]
    return storage.new_header(tensors, {"format": "pt"})


def _config(
    family: Family,
    architecture: str,
    model: Mapping,
    task: str,
    base: str,
    options: Mapping[str, Any],
    scales: dict[str, int],
    conv1d: bool,
) -> dict[str, Any]:
    """adapter_config.json. A layer that stacks n pairs has n times their rank; its alpha keeps the
    scale."""
    rank, alpha = options["rank"], options["alpha"]
    alpha_of = lambda n: _integer(alpha * (math.sqrt(n) if options["rank_stabilized"] else n))
    usual = min(scales.values())
    others = {name: n for name, n in scales.items() if n != usual}
    pattern = lambda value: {name.replace(".", r"\."): value(n) for name, n in others.items()}
    return {
        "alpha_pattern": pattern(alpha_of),
        "auto_mapping": None,
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha_of(usual),
        "lora_dropout": options["dropout"],
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank * usual,
        "rank_pattern": pattern(lambda n: rank * n),
        "revision": None,
        "target_modules": _suffixes([*scales], [*_modules(family, architecture, model)]),
        "task_type": _TASKS.get(task),
        "use_dora": options["dora"],
        "use_rslora": options["rank_stabilized"],
    }


def _integer(x: float) -> int | float:
    return int(x) if x == int(x) else x


def _suffixes(chosen: list[str], modules: list[str]) -> list[str]:
    """The shortest ends of names that choose these layers, and none of the others."""
    out = set()
    for name in chosen:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            end = ".".join(parts[-n:])
            if all(m in chosen for m in modules if m == end or m.endswith(f".{end}")):
                out.add(end)
                break
    return sorted(out)
