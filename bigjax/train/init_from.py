"""Starts from the parameters of another model: a run's or a Hugging Face folder's."""

from collections.abc import Callable, Collection, Mapping
import fnmatch
import functools
import hashlib
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import interop, modules, paths, peft
from bigjax.data import tokenizers
from bigjax.data.files import cache_dir, cache_folder, write_cached
from bigjax.errors import UserError
from bigjax.models import Adapted
from bigjax.optim import matches
from bigjax.parallel import sharding
from bigjax.train import init_table, meta
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints, Damaged
from bigjax.trees import layer_locations, layer_names, named_leaves, path_name

# config.model of a source and names of its parameters -> {name: how it is changed}
Adapter = Callable[[Mapping[str, Any], Collection[str]], dict[str, Adapted]]


class Source(NamedTuple):
    """A model to start from.

    where: names it in messages. shapes: {parameter path with 'layer_3' for the fourth layer:
    shape}. load(abstract): returns a function from name to array; arrays have the shardings of
    abstract, the target tree, where their shapes match. model: its config.model. tokenizer_kind,
    tokenizer_path: as in config.data.tokenizer; kind '' without a tokenizer. labels: its task's,
    () without labels. frozen: {name: fingerprint} of a run's frozen parts.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[Any], Callable[[str], Any]]
    model: dict[str, Any]
    tokenizer_kind: str
    tokenizer_path: str
    labels: tuple[str, ...]
    frozen: Mapping[str, str] = {}


def open_source(
    where: str,
    cache_dir: str,
    model_name: str = "",
    python_path: str = "",
    what: str = "config.init_from=",
) -> Source:
    """Opens a run (its latest step, the moving average if it keeps one) or a Hugging Face folder.

    cache_dir: the folder's tokenizer is copied there. model_name, python_path: of the config, for a
    folder of a family of one's own. what: stands before the folder in messages. Raises UserError if
    `where` is neither.
    """
    if not interop.is_huggingface(where):
        return _open_run(where, what)
    imported = interop.read(where, model_name, python_path)
    files = {**imported.derived_files, **imported.tokenizer_files}
    name = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir, "tokenizers", f"huggingface-{name}")
    for file, content in files.items():
        if not (folder / file).exists() or (folder / file).read_bytes() != content:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_cached(folder / file, content)
    return Source(
        where,
        {n: imported.shapes[n] for n in imported.names},
        lambda abstract: imported.load,
        imported.model,
        imported.tokenizer_kind,
        str(folder),
        tuple(imported.task.get("labels", ())),
    )


def _open_run(where: str, what: str) -> Source:
    if not paths.exists(epath.Path(where) / "config.json"):
        raise UserError(
            f"{what}{where!r} is neither a run's work folder nor a Hugging Face folder: "
            "it has no config.json. Train that run first, download that model of Hugging Face into "
            "a folder, or name another folder."
        )
    config = workdir_lib.read_config(where)
    workdir = workdir_lib.existing(where)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.resolve_step(None)
    saved = checkpoints.arrays(step)
    items = ["ema"] if "ema" in saved else [i for i in ("params", "extras") if i in saved]
    kept = interop.kept_parameters(str(workdir), step)
    arrays = {_own_name(n): x for item in items for n, x in saved[item].items()} | kept
    places = layer_locations(arrays)
    shapes = {n: tuple(arrays[leaf].shape[i is not None :]) for n, (leaf, i) in places.items()}

    def load(abstract):
        named = _restore(checkpoints, step, {item: saved[item] for item in items}, abstract, where)
        named.update(kept)

        def get(name: str):
            leaf, i = places[name]
            return named[leaf] if i is None else named[leaf][i]

        return get

    folder = workdir / "tokenizer"  # an imported model may lack it
    kind = tokenizers.section(config).get("kind", "")
    return Source(
        f"{where}, step {step}",
        shapes,
        load,
        config.model.to_dict(),
        kind if paths.exists(folder / tokenizers.META_FILE) else "",
        str(folder),
        tuple(config.task.get("labels", ())),
        (meta.read(workdir, step) or {}).get("frozen", {}),
    )


def fill(config, workdir: str = "") -> Source | None:
    """Fills the model and the tokenizer of a config with those of peft.base or init_from, if it
    requests that by model.preset or data.tokenizer.kind 'init_from'.

    Keys that are set in config.model override the source's. Those that a resumed run may change,
    such as the dropout, are not copied. A run that resumes in workdir takes the model from its
    saved config, so the source may no longer exist. Returns the source if it is init_from's and was
    opened. Raises UserError if it is neither a run's work folder nor a Hugging Face folder.
    """
    c = config
    wanted = [
        key
        for key, value in (
            ("model.preset", c.model.get("preset", "")),
            (tokenizers.KIND, tokenizers.section(c).get("kind", "")),
        )
        if value == "init_from"
    ]
    if not wanted:
        return None
    where = c.peft.get("base", "") or c.init_from
    if where == peft.RANDOM:
        raise UserError(
            f"config.{wanted[0]}='init_from' needs a base with a model, and config.peft.base is "
            f"{where!r}. Set peft.base to a folder, or {wanted[0]} to another value."
        )
    if not where:
        raise UserError(
            f"config.{wanted[0]}='init_from' needs config.init_from, which is empty. Set "
            "init_from to a run's work folder or a Hugging Face folder, or "
            f"{wanted[0]} to another value."
        )
    if workdir_lib.has_checkpoints(workdir):
        saved = workdir_lib.read_config(workdir)
        with c.unlocked():
            if "model.preset" in wanted:
                c.model = {
                    **saved.model.to_dict(),
                    **{k: v for k, v in c.model.items() if k != "preset"},
                }
            if tokenizers.KIND in wanted:
                own = tokenizers.section(saved)
                modules.change_kind(c, tokenizers.KEY, own.kind)
                path = str(workdir_lib.existing(workdir) / "tokenizer")
                tokenizers.section(c).update({**own, "path": path})
        return None
    key = "config.init_from" if where == c.init_from else "config.peft.base"
    source = open_source(where, cache_dir(c), c.model.name, c.python_path, f"{key}=")
    with c.unlocked():
        if "model.preset" in wanted:
            if source.model["name"] != c.model.name:
                raise _of_another_family(where, source, c.model.name)
            own = {k: v for k, v in c.model.items() if k != "preset"}
            of_a_run = modules.declared(c, "MAY_CHANGE")
            copied = {
                k: v
                for k, v in source.model.items()
                if not any(fnmatch.fnmatchcase(f"model.{k}", pattern) for pattern in of_a_run)
            }
            c.model = {"preset": "", **copied, **own}
        if tokenizers.KIND in wanted:
            if not source.tokenizer_kind:
                raise UserError(
                    f"{key}={where!r} has no tokenizer that bigjax supports. Set "
                    f"{tokenizers.KIND} and .path."
                )
            modules.change_kind(c, tokenizers.KEY, source.tokenizer_kind)
            if "path" not in modules.fields(c, tokenizers.KEY):
                raise UserError(
                    f"The tokenizer of {key}={where!r} is a "
                    f"{source.tokenizer_kind!r}, whose Config has no key 'path', so that "
                    f"{tokenizers.KIND}='init_from' cannot use it. Add that key to its module, or "
                    f"set {tokenizers.KIND}={source.tokenizer_kind!r} with its options."
                )
            tokenizers.section(c).path = source.tokenizer_path
    return source if where == c.init_from else None


def _of_another_family(where: str, source: Source, name: str) -> UserError:
    return UserError(
        f"config.init_from={where!r} holds a model {source.model['name']!r}, but "
        f"config.model.name is {name!r}. Set model.name to the source's, or init_from to another "
        "model."
    )


def check_family(tree, source: Source, reset: str, name: str) -> None:
    """Raises UserError for a source of another family, unless its parameters fit this model.

    tree: this model's arrays, or their shapes. reset: as for `initialise`. name: config.model.name.
    """
    if source.model.get("name", name) == name:
        return
    named = named_leaves(tree)
    plan = _plan(tree, source, reset)
    if _wrong(named, plan, source.shapes) or not any(n for names in plan.values() for n in names):
        raise _of_another_family(source.where, source, name)


def _own_name(name: str) -> str:
    """Removes 'params/'; names of other collections keep theirs, such as 'batch_stats/...'."""
    return name.removeprefix("params/")


def _restore(checkpoints, step, saved: dict[str, dict], abstract, where) -> dict[str, Any]:
    """{name: array} of the saved items: with the sharding in abstract if the shape is the same,
    else replicated."""
    wanted = named_leaves(abstract)
    mesh = jax.tree_util.tree_leaves(abstract)[0].sharding.mesh
    items: dict = {}
    for item, arrays in saved.items():
        for name, x in arrays.items():
            like = wanted.get(_own_name(name))
            leaf_sharding = (
                like.sharding
                if like is not None and like.shape == tuple(x.shape)
                else sharding.replicated(mesh)
            )
            node = items.setdefault(item, {})
            *parents, last = name.split("/")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=leaf_sharding)
    try:
        restored, _ = checkpoints.restore(step, items)
    except Damaged as e:
        raise UserError(
            f"Checkpoint {step} of {where} is damaged ({e}). Delete its folder to use an earlier "
            "one."
        ) from e
    return {_own_name(n): x for tree in restored.values() for n, x in named_leaves(tree).items()}


def load_all(abstract, source: Source, what: str):
    """A tree of arrays like abstract (shapes with shardings), all of them from source.

    what: names the tree in messages. Raises UserError if the source lacks an array or has one of
    another shape.
    """
    plan = {name: layer_names(name, x) for name, x in named_leaves(abstract).items()}
    for name, x in named_leaves(abstract).items():
        shape = tuple(x.shape) if plan[name] == [name] else tuple(x.shape[1:])
        for n in plan[name]:
            if source.shapes.get(n) != shape:
                actual = source.shapes.get(n)
                raise UserError(
                    f"{source.where} does not match {what}: {n} "
                    + (f"has the shape {actual}" if actual else "is missing")
                    + f"; it must have the shape {shape}. Use a matching run or folder."
                )
    return _assemble(abstract, plan, source.load(abstract))


def adapter(config) -> Adapter | None:
    """`adapt` of the family of config.model, for `initialise`; None if it has none."""
    family, c = modules.of(config, "model"), modules.options(config, "model")
    if not hasattr(family, "adapt"):
        return None
    own = lambda theirs: theirs.get("name") == config.model.name
    return lambda theirs, names: family.adapt(theirs, c, names) if own(theirs) else {}


def initialise(
    fresh,
    source: Source,
    reset: str,
    log: Callable[[str], None],
    adapt: Adapter | None = None,
):
    """fresh (a tree of arrays) with its parameters replaced by those of source that exist there.

    reset: a regex over paths of parameters that stay fresh ('': none). adapt: says how parameters
    of another shape are changed. Logs a table of parameters that were loaded, that are new, and of
    the source that are not used. Raises UserError if a shape differs, and if the source has none of
    the parameters.
    """
    named, plan = named_leaves(fresh), _plan(fresh, source, reset)
    loaded = {n for names in plan.values() for n in names if n}
    adapted = adapt(source.model, loaded) if adapt else {}
    shapes = {**source.shapes, **{n: a.shape for n, a in adapted.items()}}
    wrong = _wrong(named, plan, shapes)
    if wrong or not loaded:
        what = "; ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "") or (
            "it has no parameter of this model, but " + ", ".join(list(source.shapes)[:5]) + ", ..."
        )
        raise UserError(
            f"config.init_from={source.where!r} does not match this model: {what}. Set "
            "model.preset='init_from' to use its sizes, or init_reset to a regex of the "
            "parameters to initialise from scratch."
        )
    new = [n for name, x in named.items() for n in layer_names(name, x) if n not in loaded]
    log(init_table.table(source, named, loaded, new, adapted))
    get = source.load(_abstract(fresh))
    changed = lambda n: adapted[n].change(_on_host(get(n))) if n in adapted else get(n)
    return _assemble(fresh, plan, changed)


def _plan(tree, source: Source, reset: str) -> dict[str, list[str | None]]:
    """{array of tree: for each layer, or once, its name in source; None where it stays fresh}."""
    named = named_leaves(tree)
    kept = (
        named_leaves(matches(reset, tree, "init_reset")) if reset else dict.fromkeys(named, False)
    )
    plan = {}
    for name, x in named.items():
        layers = layer_names(name, x)
        skip = np.broadcast_to(kept[name], len(layers))
        plan[name] = [n if n in source.shapes and not s else None for n, s in zip(layers, skip)]
    return plan


def in_both(tree, source: Source) -> list[str]:
    """The names of parameters, of one layer each, that the source has in the shape of the tree."""
    return [
        n
        for name, x in named_leaves(tree).items()
        for n in layer_names(name, x)
        if source.shapes.get(n) == tuple(x.shape if n == name else x.shape[1:])
    ]


def _wrong(named: dict, plan: dict, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A sentence for each loaded parameter whose shape, of `shapes`, differs from this model's."""
    own = lambda name, x: tuple(x.shape if layer_names(name, x) == [name] else x.shape[1:])
    return [
        f"{n} has the shape {shapes[n]} there and {own(name, x)} in this model"
        for name, x in named.items()
        for n in plan[name]
        if n and shapes[n] != own(name, x)
    ]


def _on_host(x) -> np.ndarray:
    """A host array, or one that is replicated on all devices, as one whose shape differs is."""
    return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)


def _abstract(tree):
    return jax.tree_util.tree_map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def _assemble(fresh, plan: dict, get: Callable[[str], Any]):
    """The tree of loaded arrays. Each device gets its shards only, never a complete array."""

    def leaf(path, x):
        name = path_name(path)
        names = plan[name]
        if not any(names):
            return x
        parts = [get(n) if n else None for n in names]
        if all(isinstance(part, np.ndarray) for part in parts):
            source = parts[0] if names == [name] else _Layers(parts)
            return jax.make_array_from_callback(
                x.shape, x.sharding, lambda at: np.asarray(source[at], x.dtype)
            )

        drawn = x if any(p is None for p in parts) else None  # x may be a ShapeDtypeStruct
        return _joined(x.dtype, x.sharding, names != [name])(drawn, parts)

    return jax.tree_util.tree_map_with_path(leaf, fresh)


@functools.lru_cache
def _joined(dtype, sharding, stacked: bool) -> Callable:
    """Compiled once for all arrays of a shape: f(drawn, parts) copies, so that parameters and their
    average share no buffers; a part that is None is taken from `drawn`."""

    def joined(drawn, parts):
        if not stacked:
            return jnp.array(parts[0], dtype, copy=True)
        return jnp.stack(
            [drawn[i] if part is None else part.astype(dtype) for i, part in enumerate(parts)]
        )

    return jax.jit(joined, out_shardings=sharding)


class _Layers:
    """Host arrays of layers as one array with a leading axis, assembled only as it is sliced."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts

    def __getitem__(self, at: tuple) -> np.ndarray:
        return np.stack([part[at[1:]] for part in self._parts[at[0]]])
