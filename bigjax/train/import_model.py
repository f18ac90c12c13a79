"""`bigjax import`: makes a work folder from a Hugging Face folder.

It is the folder of a run at step 0, with the data of interop.origin beside it and the original
tokenizer's files in `tokenizer/huggingface/`, so that an export of step 0 gives the original folder
back, byte for byte.
"""

from collections.abc import Callable, Sequence
import pathlib
import re

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import config as config_lib
from bigjax import interop, modules, tasks
from bigjax.data import tokenizers
from bigjax.errors import RunError, UserError
from bigjax.interop import origin as origin_lib
from bigjax.interop.origin import ORIGIN
from bigjax.interop.tokenizers import TOKENIZER_JSON
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import hooks
from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints, SaveError
from bigjax.train.state import State, cast, split
from bigjax.trees import count, layer_names, named_leaves, path_name

TOKENIZER_FILES = "huggingface"  # subfolder of `tokenizer` with the original files
BATCH_SIZE = 8  # of an imported run's config, as the source has none


def import_run(
    source: str,
    workdir: str,
    log: Callable[[str], None] = print,
    overrides: Sequence[str] = (),
) -> None:
    """Creates the work folder of a run at step 0 from a Hugging Face folder.

    overrides: --config.KEY=VALUE for the new run's config. Raises UserError, and leaves no folder,
    for an unsupported model, damaged files, an override without effect, and a workdir that is not
    empty.
    """
    mesh_lib.check_settings()
    c = config_lib.new_config()
    names = ("--config.model.name=", "--config.python_path=")
    config_lib.override(c, [o for o in overrides if o.startswith(names)])
    config_lib.set_python_path(c, pathlib.Path.cwd())
    imported = interop.read(source, c.model.name, c.python_path)
    if any(o.startswith(names[0]) for o in overrides) and c.model.name != imported.model["name"]:
        raise UserError(
            f"--config.model.name={c.model.name} would have no effect: {source} is a model of "
            f"{imported.model['name']!r}. Remove it."
        )
    config, overridden = config_of(c, imported, [o for o in overrides if not o.startswith(names)])
    with interop.new_folder(workdir) as folder:
        of_tokenizer = {k: x for k, x in overridden.items() if k.startswith(f"{tokenizers.KEY}.")}
        import_tokenizer(imported, config, folder / "tokenizer", workdir, of_tokenizer, log)
        task = tasks.build(config)
        variables, kept = _variables(imported, task, config, log)
        origin_lib.save(folder, imported, kept)
        workdir_lib.write_config(epath.Path(folder), config)
        save(folder, variables, config)
        kept_files = [f"tokenizer/{TOKENIZER_FILES}/{name}" for name in imported.tokenizer_files]
        if tokenizers.section(config) and (folder / "tokenizer").exists():
            kept_files = ["tokenizer/"]
    log(
        f"Wrote {workdir}: {count(variables['params']):,} parameters as step 0, "
        + ", ".join(["config.json", *kept_files, ORIGIN])
    )


def config_of(c, imported: interop.Imported, overrides: Sequence[str]):
    """(config, {overridden key: value}): c with the imported model and task."""
    with c.unlocked():
        c.model = {"preset": "", **imported.model}
        if imported.dtype == "bfloat16" and "param_dtype" in modules.fields(c, "model"):
            c.model.param_dtype = "bfloat16"
        c.task = imported.task
        task = modules.of(c, "task")
        if not hasattr(task, "DATA"):
            raise UserError(
                f"The module of task.name={c.task.name!r} does not define DATA, the name of the "
                "data that an imported model is trained on."
            )
        c.data = dict(name=task.DATA)
        for_model = getattr(modules.of(c, "data"), "for_model", lambda model: {})
        c.data.update({**for_model(imported.model), **imported.data})
        c.train.batch_size = BATCH_SIZE
        kind = getattr(task, "EVALUATION", "loss")
        c.evals = dict(valid=dict(kind=kind, every=c.train.steps))
    kinds = [o for o in overrides if o.startswith(f"--config.{tokenizers.KIND}=")]
    keys = config_lib.override(c, kinds, modules.filled(c), modules.types(c))
    rest = [o for o in overrides if o not in kinds]
    keys += config_lib.override(c, rest, modules.filled(c), modules.types(c))
    modules.fill(c)
    config_lib.expand_paths(c, modules.path_schemes(c))
    config_lib.check_values(c)
    return c, {key: config_lib.get(c, key) for key in keys}


def import_tokenizer(
    imported: interop.Imported, config, folder, workdir: str, overridden: dict, log
) -> None:
    """Writes the original tokenizer files and bigjax's own, and sets config.data.tokenizer if the
    data have one. overridden: the keys of data.tokenizer, which only name a tokenizer for a folder
    without one that bigjax supports, or 'tokenizer_json' for one with a tokenizer.json too."""
    originals = folder / TOKENIZER_FILES
    for name, content in imported.tokenizer_files.items():
        (originals / name).parent.mkdir(parents=True, exist_ok=True)
        (originals / name).write_bytes(content)
    if not tokenizers.section(config):  # such as images: the files are only kept for an export
        return
    kind, derived, other = imported.tokenizer_kind, imported.derived_files, TOKENIZER_JSON
    if kind not in ("", other) and overridden.get(tokenizers.KIND) == other:
        if "tokenizer.json" in imported.tokenizer_files:
            overridden = {k: x for k, x in overridden.items() if k != tokenizers.KIND}
            kind = other
            derived = interop.tokenizers.derived(imported.tokenizer_files, imported.config, kind)
    for name, content in derived.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    spec, source = config.data.tokenizer, imported.folder
    if kind:
        modules.change_kind(config, tokenizers.KEY, kind)
        with config.unlocked():
            spec.path = str(folder if derived else originals)
            in_source = lambda text: text.replace(spec.path, str(source))
            try:
                tokenizer = tokenizers.named(spec, lambda text: log(in_source(text)))
            except UserError as e:  # `folder` is removed
                raise UserError(in_source(str(e))) from None
            spec.lowercase = getattr(tokenizer, "lowercase", True)  # only some kinds have it
        whose, model = f"The tokenizer of {source}", "its model"
        remedy = "Restore the folder's files."
    elif overridden:
        tokenizer = tokenizers.named(spec, log, config.python_path)
        whose = f"The tokenizer of config.{tokenizers.KEY} ({tokenizer.name})"
        model = f"the model of {source}"
        remedy = "Give the one that the model was trained with."
    else:
        log(interop.tokenizers.unread(imported.tokenizer_files))
        return
    n_tokens = imported.model.get("vocab_size")
    if n_tokens is not None and tokenizer.vocab_size > n_tokens:
        raise UserError(
            f"{whose} has {tokenizer.vocab_size} tokens, but {model} only {n_tokens}: they do not "
            f"belong together. {remedy}"
        )
    for key, value in overridden.items() if kind else ():
        if key != "data.tokenizer.lowercase" or spec.lowercase != value:
            raise UserError(
                f"--config.{key}={value} would have no effect: the tokenizer files in {source} "
                "determine it. Remove it."
            )
    with config.unlocked():
        if "path" in spec:
            spec.path = str(epath.Path(workdir).expanduser().resolve() / "tokenizer")
    tokenizer.save(folder)


def _variables(imported: interop.Imported, task, config, log) -> tuple[dict, list[str]]:
    """The task's variables as host arrays, and the names of imported ones that it does not use.

    Raises UserError for a folder that lacks values of other collections than parameters.
    """

    def init(rng):
        params, extras = split(task.init(rng))
        stored = {} if task.extras_of else extras  # with extras_of they follow from the parameters
        return {**cast(params, config.model.get("param_dtype", "float32")), **stored}

    shapes = jax.eval_shape(init, jax.random.key(0))
    wanted = {n: k for k, x in named_leaves(shapes).items() for n in layer_names(k, x)}
    loaded = [n for n in imported.names if n in wanted]
    new = [n for n in wanted if n not in imported.shapes]
    kept = [n for n in imported.names if n not in wanted]
    collections = {*jax.eval_shape(task.init, jax.random.key(0))} - {"params"}
    if absent := [n for n in new if n.split("/")[0] in collections]:
        raise UserError(
            f"{imported.folder} lacks {len(absent)} arrays that the model keeps beside its "
            f"parameters: {', '.join(absent[:5])}. They cannot be drawn at random. Save the folder "
            "with them, or declare them in the family's table (HUGGING_FACE of its module)."
        )
    _describe(imported, config, loaded, new, kept, log)
    fresh, drawn = {}, {wanted[n] for n in new}
    if new:
        fresh = named_leaves(jax.jit(init)(jax.random.key(config.seed)))
        fresh = {name: np.array(x) for name, x in fresh.items() if name in drawn}

    def host_array(path, like):
        name = path_name(path)
        out = fresh[name] if name in drawn else np.empty(like.shape, like.dtype)
        layers = layer_names(name, like)
        for i, n in enumerate(layers):
            if n in imported.shapes:
                layer = out if layers == [name] else out[i]
                if imported.shapes[n] != layer.shape:
                    raise UserError(
                        f"{n} has the shape {imported.shapes[n]} in {imported.folder}, but "
                        f"{layer.shape} in task {config.task.name!r}. An import keeps the "
                        "sizes in its config.json; a run may start from it with others by "
                        "config.init_from."
                    )
                layer[...] = imported.load(n)
        return out

    arrays = jax.tree_util.tree_map_with_path(host_array, shapes)
    params = {k: x for k, x in arrays.items() if k not in collections}
    extras = {k: x for k, x in arrays.items() if k in collections}
    if task.extras_of:
        extras = task.extras_of(params, split(jax.jit(task.init)(jax.random.key(0)))[1])
    return {"params": params, **extras}, kept


def _describe(imported, config, loaded, new, kept, log) -> None:
    log(
        f"{imported.folder}: {imported.architecture} in {imported.dtype}"
        + (" (of several types)" if imported.dtypes else "")
        + f", as model {config.model.name!r} with task {config.task.name!r}"
    )
    for text, names in (
        ("loaded", loaded),
        (
            "new, drawn from the seed: parameters of its architecture that the folder lacks",
            [n for n in new if n in imported.missing],
        ),
        (
            "new, drawn from the seed: parameters of the task that the architecture lacks",
            [n for n in new if n not in imported.missing],
        ),
        (
            "missing in the folder, and not needed by the task",
            [n for n in imported.missing if n not in new],
        ),
        (f"not used by task {config.task.name!r}, kept for export", kept),
        ("unknown tensors, kept for export", imported.unknown),
        ("copies or buffers without weights", imported.layout.redundant),
        ("other files of the folder, not imported", imported.other_files),
    ):
        log_names(log, text, names)
    for note in imported.notes:
        log(f"  note: {note}")


def log_names(log, text: str, names: list[str]) -> None:
    if names:
        log(f"  {len(names):>5} {text}: {', '.join(_brief(names))}")


def _brief(names: list[str]) -> list[str]:
    """The names; more than 16 shortened to modules and layers, or with * for their numbers."""
    if len(names) <= 16:
        return names
    short = lambda n: (
        (re.match(r"(.+?/)?layer_\d+(?=/)", n) or re.match("[^/]+", n))[0]
        if "/" in n
        else re.sub(r"\.\d+(?=\.)", ".*", re.sub(r"^\d+\.", "*.", n))
    )
    return list(dict.fromkeys(map(short, names)))


def save(folder, variables, config, **meta) -> None:
    params, extras = split(variables)
    state = State(jnp.int32(0), params, (), extras, None, jnp.bool_(False))
    early_stop = hooks.EarlyStop(config.train.early_stop, lambda text: None).state
    checkpoints = Checkpoints(folder)
    try:
        meta = {"data": "", "early_stop": early_stop, "imported": True, **meta}
        checkpoints.save(0, state, meta, {})
        checkpoints.wait()
    except SaveError as e:
        raise RunError(
            f"The parameters could not be written ({e.__cause__}). Nothing was imported: free disk "
            "space and run the command again."
        ) from e
    finally:
        checkpoints.close()
