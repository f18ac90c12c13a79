"""Starting from another model's parameters, by path: a run's, or a Hugging Face folder's."""

from collections import defaultdict
from collections.abc import Callable
import hashlib
import re
import types
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import interop, paths
from bigjax.data import tokenizer as tokenizers
from bigjax.data.files import cache_dir, cache_folder, write_atomically
from bigjax.errors import UserError
from bigjax.optim import matches
from bigjax.parallel import sharding
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints, Damaged
from bigjax.trees import layer_names, layer_places, named_leaves, path_name

OF_A_RUN = ("dtype", "param_dtype", "scan", "remat", "attention")  # not of a model


class Source(NamedTuple):
    """A model to start from.

    shapes: {parameter path with 'layer_3' for the fourth layer: shape}. load(abstract) -> (name ->
    array): with the shardings of abstract, the tree that is wanted, where they fit. model: its
    config.model. tokenizer_kind, tokenizer_path: as in config.data.tokenizer; kind '' if there is
    none. labels: of its task, () if it has none.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[Any], Callable[[str], Any]]
    model: dict[str, Any]
    tokenizer_kind: str
    tokenizer_path: str
    labels: tuple[str, ...]


def open_source(where: str, cache_dir: str) -> Source:
    """A run (its newest step, the moving average where it keeps one) or a Hugging Face folder.

    cache_dir: gets the folder's tokenizer. Raises UserError if there is neither.
    """
    if not interop.is_huggingface(where):
        return _open_run(where)
    found = interop.read(where)
    files = {**found.derived_files, **found.tokenizer_files}
    name = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir, "tokenizers", f"huggingface-{name}")
    for file, content in files.items():
        if not (folder / file).exists() or (folder / file).read_bytes() != content:
            write_atomically(folder / file, content)
    return Source(
        where,
        {n: found.shapes[n] for n in found.names},
        lambda abstract: found.load,
        found.model,
        found.tokenizer_kind,
        str(folder),
        tuple(found.task.get("labels", ())),
    )


def _open_run(where: str) -> Source:
    if not paths.exists(epath.Path(where) / "config.json"):
        raise UserError(
            f"config.init_from={where!r} is neither a run's work folder nor a Hugging "
            "Face folder: it has no config.json. Train that run first, or name another "
            "folder."
        )
    config = workdir_lib.read_config(where)
    workdir = workdir_lib.existing(where)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.resolve_step(None)
    saved = checkpoints.arrays(step)
    items = ["ema"] if "ema" in saved else [i for i in ("params", "extras") if i in saved]
    kept = interop.kept_parameters(str(workdir), step)
    arrays = {_own_name(n): x for item in items for n, x in saved[item].items()} | kept
    places = layer_places(arrays)
    shapes = {n: tuple(arrays[leaf].shape[i is not None :]) for n, (leaf, i) in places.items()}

    def load(abstract):
        named = _restore(checkpoints, step, {item: saved[item] for item in items}, abstract, where)
        named.update(kept)

        def get(name: str):
            leaf, i = places[name]
            return named[leaf] if i is None else named[leaf][i]

        return get

    model = {k: v for k, v in config.model.items() if k not in OF_A_RUN}
    return Source(
        f"{where}, step {step}",
        shapes,
        load,
        model,
        _tokenizer_kind(config),
        str(workdir / "tokenizer"),
        tuple(config.task.get("labels", ())),
    )


def fill(config, workdir: str = "") -> Source | None:
    """Puts the model and the tokenizer of init_from into a config that says 'init_from' for them.

    Keys of config.model that are set win over those found. A run that goes on in workdir has them
    in its own config, so that the folder it came from may be gone. Returns the source if it was
    opened. Raises UserError if init_from is neither a run's work folder nor a Hugging Face folder.
    """
    c = config
    wanted = [
        key
        for key, value in (
            ("model.preset", c.model.get("preset", "")),
            ("data.tokenizer.kind", _tokenizer_kind(c)),
        )
        if value == "init_from"
    ]
    if not wanted:
        return None
    if not c.init_from:
        raise UserError(
            f"config.{wanted[0]}='init_from' takes it from config.init_from, which is "
            "empty. Set that to a run's work folder or a Hugging Face folder, or name "
            "a preset."
        )
    if workdir_lib.has_checkpoints(workdir):
        saved = workdir_lib.read_config(workdir)
        with c.unlocked():
            if "model.preset" in wanted:
                c.model = {
                    **saved.model.to_dict(),
                    **{k: v for k, v in c.model.items() if k != "preset"},
                }
            if "data.tokenizer.kind" in wanted:
                c.data.tokenizer.update(saved.data.tokenizer)
                c.data.tokenizer.path = str(workdir_lib.existing(workdir) / "tokenizer")
        return None
    source = open_source(c.init_from, cache_dir(c))
    with c.unlocked():
        if "model.preset" in wanted:
            if source.model["name"] != c.model.name:
                raise UserError(
                    f"config.init_from={c.init_from!r} holds a model "
                    f"{source.model['name']!r}, and config.model.name is "
                    f"{c.model.name!r}."
                )
            own = {k: v for k, v in c.model.items() if k != "preset"}
            c.model = {"preset": "", **source.model, **own}
        if "data.tokenizer.kind" in wanted:
            if not source.tokenizer_kind:
                raise UserError(
                    f"config.init_from={c.init_from!r} has no tokenizer that bigjax "
                    "reads: set data.tokenizer.kind and .path."
                )
            c.data.tokenizer.kind = source.tokenizer_kind
            c.data.tokenizer.path = source.tokenizer_path
    return source


def _tokenizer_kind(config) -> str:
    """'' of data without a tokenizer."""
    return config.data.get("tokenizer", {}).get("kind", "")


def _own_name(name: str) -> str:
    """Parameters are named without the collection, as the others are not: 'batch_stats/...'."""
    return name.removeprefix("params/")


def _restore(checkpoints, step, saved: dict[str, dict], abstract, where) -> dict[str, Any]:
    """{name: array} of the saved items: where a leaf is as wanted with the wanted sharding, else a
    copy each."""
    want = named_leaves(abstract)
    mesh = jax.tree_util.tree_leaves(abstract)[0].sharding.mesh
    items: dict = {}
    for item, arrays in saved.items():
        for name, x in arrays.items():
            like = want.get(_own_name(name))
            place = (
                like.sharding
                if like is not None and like.shape == tuple(x.shape)
                else sharding.replicated(mesh)
            )
            node = items.setdefault(item, {})
            *parents, last = name.split("/")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place)
    try:
        restored, _ = checkpoints.restore(step, items)
    except Damaged as e:
        raise UserError(f"The checkpoint {step} of {where} is damaged ({e}).") from e
    return {_own_name(n): x for tree in restored.values() for n, x in named_leaves(tree).items()}


def load_all(abstract, source: Source, what: str):
    """A tree of arrays as abstract (shapes with shardings), all of them from source.

    what: a name for messages. Raises UserError where the source lacks one, or has another shape.
    """
    plan = {name: layer_names(name, x) for name, x in named_leaves(abstract).items()}
    for name, x in named_leaves(abstract).items():
        shape = tuple(x.shape) if plan[name] == [name] else tuple(x.shape[1:])
        for n in plan[name]:
            if source.shapes.get(n) != shape:
                found = source.shapes.get(n, "absent")
                raise UserError(
                    f"{source.where} does not fit {what}: {n} is {found} there, and has to be "
                    f"{shape}."
                )
    return _assemble(abstract, plan, source.load(abstract))


def initialise(fresh, source: Source, reset: str, log: Callable[[str], None]):
    """fresh (a tree of arrays) with the parameters of source where it has them.

    reset: a regex over paths; what it matches stays fresh ('' nothing). Logs a table of what was
    loaded, what is new, and what was left in the source. Raises UserError for shapes that differ,
    and if nothing fits.
    """
    named = named_leaves(fresh)
    kept = (
        named_leaves(matches(reset, fresh, "init_reset")) if reset else dict.fromkeys(named, False)
    )
    plan, wrong = {}, []
    for name, x in named.items():
        layers = layer_names(name, x)
        skip = np.broadcast_to(kept[name], len(layers))
        plan[name] = [n if n in source.shapes and not s else None for n, s in zip(layers, skip)]
        shape = x.shape if layers == [name] else x.shape[1:]
        wrong += [
            f"{n} is {source.shapes[n]} there, {tuple(shape)} here"
            for n in plan[name]
            if n and source.shapes[n] != tuple(shape)
        ]
    loaded = {n for names in plan.values() for n in names if n}
    if wrong or not loaded:
        what = "; ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "") or (
            "it has no parameter of this model; it has "
            + ", ".join(list(source.shapes)[:5])
            + ", ..."
        )
        raise UserError(
            f"config.init_from={source.where!r} does not fit this model: {what}. Use "
            "model.preset='init_from' for its sizes, or set init_reset to a regex of "
            "what should start anew."
        )
    new = [n for name, x in named.items() for n in layer_names(name, x) if n not in loaded]
    log(_table(source, named, loaded, new))
    return _assemble(fresh, plan, source.load(_abstract(fresh)))


def check_labels(source: Source, shapes, reset: str, labels, log: Callable[[str], None]) -> None:
    """Refuses a classifier or tagger whose outputs mean other labels than this run's."""
    for name in ("classifier/kernel", "tagger/kernel"):
        there = name in source.shapes and name in named_leaves(shapes)
        if not there or tuple(labels) == source.labels or (reset and re.search(reset, name)):
            continue
        if all(re.fullmatch(r"LABEL_\d+", label) for label in source.labels):
            log(
                f"note: the outputs of {name} have no names in {source.where}; they are taken in "
                f"order for {', '.join(labels)}"
            )
            continue
        head = name.split("/")[0]
        raise UserError(
            f"config.init_from={source.where!r} has a {head} for the labels "
            f"{list(source.labels)}, this run has {list(labels)}. Set init_reset="
            f"'^{head}' to start it anew, or task.labels to the same ones."
        )


def _abstract(tree):
    return jax.tree_util.tree_map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def _assemble(fresh, plan: dict, get: Callable[[str], Any]):
    """Each array is made on its own devices: no leaf is ever whole on one of several."""

    def leaf(path, x):
        name = path_name(path)
        names = plan[name]
        if not any(names):
            return x
        parts = [get(n) if n else None for n in names]
        if all(isinstance(part, np.ndarray) for part in parts):
            whole = parts[0] if names == [name] else _Layers(parts)
            return jax.make_array_from_callback(
                x.shape, x.sharding, lambda at: np.asarray(whole[at], x.dtype)
            )

        dtype = x.dtype

        def make(x, parts):  # copies, so that parameters and their average share none
            if names == [name]:
                return jnp.array(parts[0], dtype, copy=True)
            return jnp.stack(
                [x[i] if part is None else part.astype(dtype) for i, part in enumerate(parts)]
            )

        drawn = x if any(p is None for p in parts) else None  # else it may be a shape alone
        return jax.jit(make, out_shardings=x.sharding)(drawn, parts)

    return jax.tree_util.tree_map_with_path(leaf, fresh)


class _Layers:
    """Arrays on the host as one with a leading axis, of which only a part is put together."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts

    def __getitem__(self, at: tuple) -> np.ndarray:
        return np.stack([part[at[1:]] for part in self._parts[at[0]]])


def _table(source: Source, named: dict, loaded: set, new: list) -> str:
    """What was loaded, what is new, what was left: one line a module, equal layers together."""
    sizes = {n: int(np.prod(s)) for n, s in source.shapes.items()}
    for name, x in named.items():
        names = layer_names(name, x)
        sizes.update({n: x.size // len(names) for n in names})
    rows = []
    for status, names in (
        ("loaded", loaded),
        ("new", new),
        ("left", [n for n in source.shapes if n not in loaded]),
    ):
        modules, layers = defaultdict(list), set()
        for n in names:
            found = re.match(r"stack/layer_(\d+)/", n)
            modules["stack" if found else n.split("/")[0]].append(n)
            layers |= {int(found[1])} if found else set()
        for module, members in sorted(modules.items()):
            label = f"stack, layers {_ranges(sorted(layers))}" if module == "stack" else module
            rows.append((status, label, len(members), sum(sizes[n] for n in members)))
    lines = [f"{'':8}{'from ' + source.where:<44}{'arrays':>7}{'parameters':>15}"]
    lines += [f"{status:<8}{label:<44}{n:>7}{size:>15,}" for status, label, n, size in rows]
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """'0-3, 7'."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def check_tokenizer(source: Source, reset: str, tokenizer, log: Callable[[str], None]) -> None:
    """Refuses a tokenizer that is not the one that source's token embedding was trained with."""
    name = "embed/embedding"
    if tokenizer is None or name not in source.shapes or (reset and re.search(reset, name)):
        return
    if not source.tokenizer_kind:
        log(
            f"note: {source.where} has no tokenizer that bigjax reads, so it is not checked that "
            "the vocabulary is the same"
        )
        return
    spec = types.SimpleNamespace(
        kind=source.tokenizer_kind,
        path=source.tokenizer_path,
        lowercase=getattr(tokenizer, "lowercase", True),  # where the folder does not say it
    )
    theirs = tokenizers.named(spec, lambda text: None)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The parameters of config.init_from={source.where!r} were trained with another "
            f"vocabulary ({theirs.kind}, {theirs.vocab_size:,} tokens) than this run's "
            f"({tokenizer.kind}, {tokenizer.vocab_size:,}). Set data.tokenizer.kind='init_from' to "
            "use theirs, or init_reset='^(embed|mlm|head)' to start those parameters anew."
        )
