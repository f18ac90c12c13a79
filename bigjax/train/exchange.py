"""`bigjax import` and `bigjax export`: between work folders and Hugging Face folders.

An imported work folder is that of a run at step 0, with what interop.origin remembers beside it
and the files of the original tokenizer in `tokenizer/huggingface/`: an export of that step gives
the original folder back, byte for byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import re
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import config as config_lib
from bigjax import interop, modules, tasks
from bigjax.data import tokenizer as tokenizers
from bigjax.errors import RunError, UserError
from bigjax.interop import origin as origin_lib
from bigjax.interop import tokenizers as hf_tokenizers
from bigjax.interop.origin import ORIGIN, Origin
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import hooks
from bigjax.train import load as load_lib
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints, SaveError
from bigjax.train.state import State, cast
from bigjax.trees import count, layer_names, layer_places, named_leaves, path_name

FILES = "huggingface"  # in the folder of the tokenizer
SEQ_LEN, BATCH_SIZE = 512, 8  # of an imported config, which no one chose


# --- Import ----------------------------------------------------------------------------------


def import_run(
    source: str,
    workdir: str,
    log: Callable[[str], None] = print,
    overrides: Sequence[str] = (),
) -> None:
    """Makes the work folder of a run at step 0 from a Hugging Face folder.

    overrides: --config.KEY=VALUE of the new run's config. Raises UserError, and leaves no folder,
    for a model that is not supported, for damaged files, for an override that has no effect, and
    if workdir has something in it.
    """
    mesh_lib.check_settings()
    found = interop.read(source)
    config, overridden = _config(found, overrides)
    with interop.new_folder(workdir) as folder:
        _import_tokenizer(found, config, folder / "tokenizer", workdir, log)
        for key, value in overridden.items():
            if not key.startswith("data.tokenizer."):
                continue
            if key != "data.tokenizer.lowercase" or config.data.tokenizer.lowercase != value:
                raise UserError(
                    f"--config.{key}={value} would change nothing: the tokenizer's files in "
                    f"{source} decide it. Leave it out."
                )
        task = tasks.build(config)
        params, kept = _params(found, task, config, log)
        origin_lib.save(folder, found, kept)
        workdir_lib.write_config(epath.Path(folder), config)
        _save(folder, params, config)
    log(
        f"Wrote {workdir}: {count(params):,} parameters as step 0, config.json, tokenizer/, "
        f"{ORIGIN}"
    )


def _config(found: interop.Imported, overrides: Sequence[str]):
    """A config with the model's and the task's keys; the rest is as in new_config, or overridden.

    And {key: value} of what was overridden.
    """
    c = config_lib.new_config()
    types = {"param_dtype": "bfloat16"} if found.dtype == "bfloat16" else {}
    with c.unlocked():
        c.model = {"preset": "", **found.model, **types}
        c.task = found.task
        c.data = dict(name=modules.of(c, "task").DATA)
        if "max_len" in found.model:  # of a model of text
            c.data.seq_len = min(found.model["max_len"], SEQ_LEN)
        c.train.batch_size = BATCH_SIZE
        kind = modules.of(c, "task").EVALUATION
        c.evals = dict(valid=dict(kind=kind, every=c.train.steps))
    keys = config_lib.override(c, list(overrides), modules.filled(c), modules.types(c))
    modules.fill(c)
    config_lib.expand_paths(c, modules.path_schemes(c))
    config_lib.check_values(c)
    return c, {key: config_lib.get(c, key) for key in keys}


def _import_tokenizer(found: interop.Imported, config, folder, workdir: str, log) -> None:
    """Writes the original files, and the tokenizer of ours that reads them; sets the config's."""
    originals = folder / FILES
    originals.mkdir(parents=True)
    for name, content in found.tokenizer_files.items():
        (originals / name).write_bytes(content)
    for name, content in found.derived_files.items():
        (folder / name).write_bytes(content)
    if not found.tokenizer_kind:
        log(
            "No tokenizer that bigjax reads came with it; its files, if any, are kept. To train "
            "or evaluate, set data.tokenizer.kind and .path."
        )
        return
    spec = config.data.tokenizer
    with config.unlocked():
        spec.kind = found.tokenizer_kind
        spec.path = str(folder if found.derived_files else originals)
        tell = lambda text: log(text.replace(spec.path, str(found.folder)))
        tokenizer = tokenizers.named(spec, tell)
        spec.path = str(epath.Path(workdir).expanduser().resolve() / "tokenizer")
        spec.lowercase = getattr(tokenizer, "lowercase", True)  # the others know no such thing
    if tokenizer.vocab_size > found.model["vocab_size"]:
        raise UserError(
            f"The tokenizer of {found.folder} has {tokenizer.vocab_size} tokens, its "
            f"model only {found.model['vocab_size']}: they are not of one model."
        )
    tokenizer.save(folder)


def _params(found: interop.Imported, task, config, log) -> tuple[Any, list[str]]:
    """The task's parameters as arrays on the host, and the names that it has no place for."""

    def init(rng):
        return cast(task.init(rng)["params"], config.model.param_dtype)

    shapes = jax.eval_shape(init, jax.random.key(0))
    wanted = {n: k for k, x in named_leaves(shapes).items() for n in layer_names(k, x)}
    loaded = [n for n in found.names if n in wanted]
    new = [n for n in wanted if n not in found.shapes]
    kept = [n for n in found.names if n not in wanted]
    _describe(found, config, loaded, new, kept, log)
    fresh, drawn = {}, {wanted[n] for n in new}
    if new:
        fresh = named_leaves(jax.jit(init)(jax.random.key(config.seed)))
        fresh = {name: np.array(x) for name, x in fresh.items() if name in drawn}

    def one(path, like):
        name = path_name(path)
        out = fresh[name] if name in drawn else np.empty(like.shape, like.dtype)
        layers = layer_names(name, like)
        for i, n in enumerate(layers):
            if n in found.shapes:
                place = out if layers == [name] else out[i]
                if found.shapes[n] != place.shape:
                    raise UserError(
                        f"{n} is {found.shapes[n]} in {found.folder}, but "
                        f"{place.shape} in task {config.task.name!r}."
                    )
                place[...] = found.load(n)
        return out

    return jax.tree_util.tree_map_with_path(one, shapes), kept


def _describe(found, config, loaded, new, kept, log) -> None:
    log(
        f"{found.folder}: {found.architecture} in {found.dtype}"
        + (" (of several types)" if found.dtypes else "")
        + f", as model {config.model.name!r} with task {config.task.name!r}"
    )
    for text, names in (
        ("loaded", loaded),
        (
            "new, drawn from the seed: the folder lacks what its architecture has",
            [n for n in new if n in found.missing],
        ),
        (
            "new, drawn from the seed: the task has it, the architecture not",
            [n for n in new if n not in found.missing],
        ),
        (
            "missing: the folder lacks what its architecture has, and the task needs none",
            [n for n in found.missing if n not in new],
        ),
        (f"without a place in task {config.task.name!r}, kept for an export", kept),
        ("unknown tensors, kept for an export", found.unknown),
        ("copies or buffers that hold no weights", found.layout.redundant),
        ("other files of the folder, left out", found.other_files),
    ):
        _list(log, text, names)
    for note in found.notes:
        log(f"  note: {note}")


def _list(log, text: str, names: list[str]) -> None:
    if names:
        log(f"  {len(names):>5} {text}: {', '.join(_brief(names))}")


def _brief(names: list[str]) -> list[str]:
    """If there are many names, modules and layers of ours, and theirs without numbers."""
    if len(names) <= 16:
        return names
    short = lambda n: (
        "/".join(n.split("/")[: 2 if n.startswith("stack/") else 1])
        if "/" in n
        else re.sub(r"\.\d+(?=\.)", ".*", re.sub(r"^\d+\.", "*.", n))
    )
    return list(dict.fromkeys(map(short, names)))


def _save(folder, params, config) -> None:
    state = State(jnp.int32(0), params, (), {}, None, jnp.bool_(False))
    early_stop = hooks.EarlyStop(config.train.early_stop, {}, lambda text: None).state
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.save(0, state, {"data": "", "early_stop": early_stop, "imported": True}, {})
        checkpoints.wait()
    except SaveError as e:
        raise RunError(
            f"The parameters could not be written ({e.__cause__}). Nothing is left of "
            "this import; make room and run it again."
        ) from e
    finally:
        checkpoints.close()


# --- Export ----------------------------------------------------------------------------------


def export_run(
    workdir: str,
    to: str,
    step: int | None = None,
    log: Callable[[str], None] = print,
    dtype: str = "",
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a saved step (None: the newest) as a folder that transformers opens.

    The moving average where the run keeps one. An untouched import (step 0) gives the original
    files, unless dtype or max_shard_bytes (default: interop.MAX_SHARD_BYTES) asks for others.
    dtype: of the tensors; '' is what was imported, else model.param_dtype. Raises UserError, and
    leaves no folder, for a model that transformers has no class for, and if `to` has something in
    it.
    """
    config = workdir_lib.read_config(workdir)
    model = {"name": config.model.name, **dataclasses.asdict(modules.options(config, "model"))}
    family = interop.family_of(model)
    if dtype:
        interop.check_dtype(dtype)
    origin = origin_lib.load(workdir)
    if origin and origin.family != family:
        origin = None
    with config.unlocked():  # any device will do
        config.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
        param_dtype = config.model.param_dtype
        if origin is None:
            config.model.param_dtype = "float32"  # as trained: not rounded before `dtype` is
    loaded = load_lib.load(workdir, config, step, batch_size=None)
    layout = origin.layout if origin and loaded.step == 0 else None
    params = _Params(loaded.params, interop.kept_parameters(workdir, loaded.step) if origin else {})
    labels, kind = _labels(config, params)
    architecture = _architecture(origin, layout, family, model, params, len(labels) or 2)
    same_types = _same_types(origin, dtype)
    if max_shard_bytes is None and not same_types:
        max_shard_bytes = interop.MAX_SHARD_BYTES
    files, extra = _tokenizer(workdir, origin, family, model, log)
    written = interop.write(
        to,
        family=family,
        architecture=architecture,
        model=model,
        params=params,
        labels=labels,
        kind=kind,
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
    if architecture == "BertForPreTraining" and config.task.get("pairs") == "sop":
        log(
            "  note: the class of a pair is about the order of its texts (pairs='sop'), not about "
            "which text follows, as transformers says of it"
        )
    required = set(interop.requires(family, architecture, model, len(labels) or 2, layout))
    _list(
        log,
        f"parameters that {architecture} has no place for, or that the import drew, left out",
        [n for n in params if n not in required],
    )
    _list_originals(log, origin, layout, exact=max_shard_bytes is None)


def _architecture(
    origin: Origin | None, layout, family: str, model: dict, params, n_labels: int
) -> str:
    """The class of transformers: the original's if the parameters are all there."""
    if (
        layout
        or origin
        and set(interop.requires(family, origin.architecture, model, n_labels)) <= set(params)
    ):
        return origin.architecture
    return interop.architecture_of(family, params.own)


def _list_originals(log, origin: Origin | None, layout, exact: bool) -> None:
    """What becomes of the tensors that the import found and the run does not have."""
    if not origin or not origin.layout:
        return
    if layout:
        _list(log, "unknown tensors, written as they were", layout.unknown)
    else:
        _list(
            log,
            "imported tensors that were not trained with the others, left out",
            [*origin.kept, *origin.layout.unknown],
        )
    if not layout or not exact:
        _list(log, "copies or buffers that hold no weights, left out", origin.layout.redundant)


class _Params(Mapping):
    """{unrolled name: array on the host}, a copy only while it is used. own: those of the run."""

    def __init__(self, tree, kept: dict[str, np.ndarray]):
        self._leaves, self._kept = named_leaves(tree), kept
        self._place = layer_places(self._leaves)
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
    """Whether every tensor has the type that it was imported in."""
    return origin is not None and (not dtype or dtype == origin.dtype and not origin.dtypes)


def _types(param_dtype: str, origin: Origin | None, dtype: str, same: bool) -> dict[str, Any]:
    """The arguments of interop.write that say which types and which original config."""
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


def _labels(config, params: _Params) -> tuple[tuple[str, ...], str]:
    """Names of the outputs of a classifier or tagger, and 'classify' or 'regress' of the first."""
    head = next((h for h in ("classifier", "tagger") if f"{h}/bias" in params), None)
    if head is None:
        return (), ""
    n, labels = len(params[f"{head}/bias"]), tuple(config.task.get("labels", ()))
    if len(labels) != n:
        labels = tuple(f"LABEL_{i}" for i in range(n))
    return labels, config.task.get("kind", "") if head == "classifier" else ""


def _tokenizer(
    workdir: str, origin: Origin | None, family: str, model: dict, log
) -> tuple[dict[str, bytes], dict[str, int]]:
    """Files for the export, and token ids for a new config.json."""
    folder = workdir_lib.existing(workdir) / "tokenizer"
    if origin:
        return {n: (folder / FILES / n).read_bytes() for n in origin.files}, {}
    if not (folder / tokenizers.META_FILE).exists():
        log(f"  note: {folder} holds no tokenizer; none is written")
        return {}, {}
    meta = tokenizers.read_meta(folder)
    ids = {role: meta[f"{role}_id"] for role in ("bos", "eos", "pad")}
    files = hf_tokenizers.written(meta["kind"], hf_tokenizers.read(folder), ids, model["max_len"])
    if not files:
        log(
            f"  note: transformers has no tokenizer of kind {meta['kind']!r}; none is written. "
            "Its ids are the bytes of UTF-8, then bos 256, eos 257, pad 258"
        )
    roles = ("pad",) if family == "bert" else ("bos", "eos", "pad")
    return files, {f"{role}_token_id": ids[role] for role in roles}
