"""`bigjax export`: writes a saved step as a Hugging Face folder."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from typing import Any

import numpy as np

from bigjax import interop, modules
from bigjax.data import tokenizers
from bigjax.data.tokenizers import sentencepiece
from bigjax.errors import UserError
from bigjax.interop import adapters, images
from bigjax.interop import origin as origin_lib
from bigjax.interop import tokenizers as hf_tokenizers
from bigjax.interop.mapping import Family
from bigjax.interop.origin import Origin
from bigjax.train import load as load_lib
from bigjax.train import state as state_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.import_model import TOKENIZER_FILES, log_names
from bigjax.trees import layer_locations, named_leaves


def export_run(
    workdir: str,
    to: str,
    step: int | None = None,
    log: Callable[[str], None] = print,
    dtype: str = "",
    max_shard_bytes: int | None = None,
    base: str = "",
) -> None:
    """Writes a saved step (None: the latest) as a folder that transformers can load.

    Exports the moving average if the run keeps one. Step 0 of an import gives the original files,
    unless dtype or max_shard_bytes (default: interop.MAX_SHARD_BYTES) asks for others. dtype: of
    the tensors; '': as imported, else model.param_dtype. base: replaces config.peft.base. Raises
    UserError, and leaves no folder, for a model for which transformers has no class or no tensors,
    and if `to` is not empty.
    """
    config = workdir_lib.read_config(workdir)
    model = {"name": config.model.name, **dataclasses.asdict(modules.options(config, "model"))}
    origin = origin_lib.load(workdir)
    first = origin.family if origin else ""
    family = interop.family_of(model, config.python_path, first)
    if dtype:
        interop.check_dtype(dtype)
    if origin and origin.family != family.name:
        origin = None
    param_dtype = config.model.get("param_dtype", "float32")
    with config.unlocked():  # on any devices
        config.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
        if base:
            config.peft.base = base
        if origin is None and "param_dtype" in config.model:
            config.model.param_dtype = "float32"  # as trained; rounded only to `dtype`
    loaded = load_lib.load(workdir, config, step, batch_size=None)
    layout = origin.layout if origin and loaded.step == 0 else None
    kept = interop.kept_parameters(workdir, loaded.step) if origin else {}
    own, extras = state_lib.split(loaded.variables)
    params = _Params({**own, **extras}, kept)
    architecture = _architecture(origin, layout, family, model, params)
    required = set(interop.requires(family, architecture, model, layout))
    if not loaded.task.extras_of:  # else an import computes them again
        _check_extras(extras, required, architecture)
    if not layout:  # else some parameters were initialised by the import
        _check_added(own, required, architecture)
    same_types = _same_types(origin, dtype)
    if max_shard_bytes is None and not same_types:
        max_shard_bytes = interop.MAX_SHARD_BYTES
    if family.pixels:
        files, extra = _processor(workdir, origin, layout, model, config, log), {}
    else:
        files, extra = _tokenizer(workdir, origin, family, model, log)
        if files and (template := config.task.get("chat_template", "")):
            files["chat_template.jinja"] = _template(template, workdir)
        files = files if layout else {**files, **family.files(model, files)}
    written = interop.write(
        to,
        family=family,
        architecture=architecture,
        model=model,
        params=params,
        task=config.task.to_dict(),
        extra_files=files,
        extra_config=extra,
        max_shard_bytes=max_shard_bytes,
        layout=layout,
        raw=origin.raw if origin else None,
        **_types(param_dtype, origin, dtype, same_types),
    )
    log(
        f"Wrote {to}: step {loaded.step} of {workdir} as {architecture}, "
        f"{'moving average, ' if config.train.ema else ''}{', '.join(written)}"
    )
    for note in family.export_notes(architecture, config.task):
        log(f"  note: {note}")
    log_names(
        log,
        f"parameters not in {architecture}, or initialised by the import; not exported",
        [n for n in params if n not in required],
    )
    _list_originals(log, origin, layout, exact=max_shard_bytes is None)


def export_adapter(
    workdir: str,
    to: str,
    step: int | None = None,
    log: Callable[[str], None] = print,
    base: str = "",
) -> None:
    """Writes the adapter of a saved step (None: the latest) in peft's format, without its base.

    Step 0 of an import gives the original files. Raises UserError, and leaves no folder, for a run
    without LoRA, for parameters without a place in the format, and if `to` is not empty.
    """
    config = workdir_lib.read_config(workdir)
    if config.peft.name != "lora":
        raise UserError(
            f"Only adapters of peft.name='lora' can be written in the format of peft; {workdir} "
            f"has peft.name={config.peft.name!r}."
        )
    model = {"name": config.model.name, **dataclasses.asdict(modules.options(config, "model"))}
    family = interop.family_of(model, config.python_path)
    with config.unlocked():  # on any devices
        config.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
        if base:
            config.peft.base = base
    loaded = load_lib.load(workdir, config, step, batch_size=None)
    path = workdir_lib.existing(workdir) / adapters.ORIGIN
    origin = json.loads(path.read_text()) if path.exists() and loaded.step == 0 else None
    merged = _Params(loaded.variables["params"], {})
    written = adapters.write(
        to,
        family=family,
        architecture=family.architecture_of(merged.own),
        model=model,
        task=config.task.name,
        base=config.peft.base,
        options=dataclasses.asdict(modules.options(config, "peft")),
        params=_Params(loaded.params, {}),
        origin=origin,
    )
    log(f"Wrote {to}: the adapter of step {loaded.step} of {workdir}, {', '.join(written)}")


def _check_extras(extras, required: set[str], architecture: str) -> None:
    """Raises UserError for values beside the parameters that the export would lose."""
    if lost := [name for name in _Params(extras, {}) if name not in required]:
        raise UserError(
            f"{architecture} has no tensors for {len(lost)} arrays that this model keeps beside "
            f"its parameters: {', '.join(lost[:5])}. Without them it would compute something else. "
            "Declare them in the family's table (HUGGING_FACE of its module)."
        )


def _check_added(params, required: set[str], architecture: str) -> None:
    """Raises UserError for parameters that the export would lose beside others of their network.

    Complete networks of other names, such as the heads of another task, may be left out.
    """
    network = lambda name: name.split("/")[0]
    exported = {network(name) for name in required}
    lost = [n for n in _Params(params, {}) if n not in required and network(n) in exported]
    if lost:
        raise UserError(
            f"{architecture} has no tensors for {len(lost)} parameters within the network that it "
            f"exports: {', '.join(lost[:5])}. Without them it would compute something else. Merge "
            "them into the others (the factors of LoRA into their kernels), or declare them in the "
            "family's table (HUGGING_FACE of its module)."
        )


def _architecture(origin: Origin | None, layout, family: Family, model: dict, params) -> str:
    """The transformers class: the original's if the run has all of its parameters, and not those of
    a class that adds a head to it."""
    if layout:
        return origin.architecture
    own = family.architecture_of(params.own)
    if not origin:
        return own
    names = lambda architecture: set(interop.requires(family, architecture, model))
    original = names(origin.architecture)
    if original <= set(params) and not original < names(own) <= set(params):
        return origin.architecture
    return own


def _list_originals(log, origin: Origin | None, layout, exact: bool) -> None:
    """Logs what is done with imported tensors that are not parameters of the run."""
    if not origin or not origin.layout:
        return
    if layout:
        log_names(log, "unknown tensors, written unchanged", layout.unknown)
    else:
        log_names(
            log,
            "imported tensors that were not trained with the others, not exported",
            [*origin.kept, *origin.layout.unknown],
        )
    if not layout or not exact:
        log_names(log, "copies or buffers without weights, not exported", origin.layout.redundant)


class _Params(Mapping):
    """{unrolled name: host array}, copied from the device on access. own: names of the run's own
    parameters, without those kept from an import."""

    def __init__(self, tree, kept: dict[str, np.ndarray]):
        self._leaves, self._kept = named_leaves(tree), kept
        self._place = layer_locations(self._leaves)
        self.own = list(self._place)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._place:
            return self._kept[name]
        leaf, i = self._place[name]
        x = self._leaves[leaf]
        return np.asarray(x if i is None else x[i])

    def __iter__(self) -> Iterator[str]:
        yield from {**self._place, **self._kept}

    def __len__(self) -> int:
        return len({**self._place, **self._kept})


def _same_types(origin: Origin | None, dtype: str) -> bool:
    """Whether every tensor is exported with the dtype that it was imported with."""
    return origin is not None and (not dtype or dtype == origin.dtype and not origin.dtypes)


def _types(param_dtype: str, origin: Origin | None, dtype: str, same: bool) -> dict[str, Any]:
    """The arguments of interop.write about dtypes and the original config."""
    if origin is None:
        return {"dtype": dtype or param_dtype}
    if same:
        return {
            "dtype": origin.dtype,
            "dtypes": origin.dtypes,
            "config": origin.config,
            "metadata": origin.metadata,
        }
    return {
        "dtype": dtype,
        "config": interop.with_dtype(origin.config, dtype),
        "metadata": origin.metadata,
    }


def _processor(
    workdir: str, origin: Origin | None, layout, model: dict, config, log
) -> dict[str, bytes]:
    """{name: content} of the files beside a model of images."""
    folder = workdir_lib.existing(workdir) / "tokenizer" / TOKENIZER_FILES
    originals = {n: (folder / n).read_bytes() for n in origin.files} if origin else {}
    if layout:
        return originals
    content, notes = images.written(model, config.data, originals.get(images.FILE))
    for note in notes:
        log(f"  note: {note}")
    return {**originals, images.FILE: content}


def _template(text: str, workdir: str) -> bytes:
    """The chat template of a run for transformers, which puts no bos before its text itself."""
    folder = workdir_lib.existing(workdir) / "tokenizer"
    leads = "bos_token" not in text and tokenizers.load(folder).leading_ids
    return ("{{- bos_token }}" * bool(leads) + text).encode()


def _tokenizer(
    workdir: str, origin: Origin | None, family: Family, model: dict, log
) -> tuple[dict[str, bytes], dict[str, int]]:
    """({name: content} of tokenizer files, {name: token id} for a new config.json)."""
    folder = workdir_lib.existing(workdir) / "tokenizer"
    if origin:
        return {n: (folder / TOKENIZER_FILES / n).read_bytes() for n in origin.files}, {}
    if not (folder / tokenizers.META_FILE).exists():
        log(f"  note: {folder} has no tokenizer; none is written")
        return {}, {}
    meta = tokenizers.read_meta(folder)
    ids = {role: meta[f"{role}_id"] for role in ("bos", "eos", "pad")}
    files = hf_tokenizers.written(
        meta["kind"],
        hf_tokenizers.read(folder),
        ids,
        model.get("max_len"),
        sentencepiece.saved_sentinels(folder),
        family.appends_eos,
    )
    settings = getattr(tokenizers.load(folder), "generation_config", None)
    if files and settings:  # of Whisper's: its languages, tasks and times
        text = json.dumps(settings(model.get("max_len")), indent=2, sort_keys=True)
        files["generation_config.json"] = f"{text}\n".encode()
    if not files:
        log(
            f"  note: transformers has no tokenizer of kind {meta['kind']!r} with the same ids; "
            "none is written. "
            + "Its token ids are the UTF-8 bytes, and " * (meta["kind"] == "bytes")
            + ", ".join(f"{role} {i}" for role, i in ids.items())
        )
    return files, {f"{role}_token_id": ids[role] for role in family.special_tokens}
