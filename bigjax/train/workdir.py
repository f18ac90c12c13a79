"""The work folder: its config, and whether a run with another config may resume in it."""

import fnmatch

from etils import epath
import jax

from bigjax import config as config_lib
from bigjax import modules, paths
from bigjax.errors import UserError, cannot_write
from bigjax.interop import adapters
from bigjax.interop.origin import ORIGIN


def saved_steps(workdir: str) -> set[int]:
    """The steps with a complete checkpoint."""
    folder = epath.Path(workdir) / "checkpoints"
    if not workdir or not paths.exists(folder):
        return set()
    # A bucket cannot rename a complete folder, so there Orbax writes this file last.
    return {
        int(p.name)
        for p in folder.iterdir()
        if p.name.isdigit() and ("://" not in workdir or (p / "commit_success.txt").exists())
    }


def has_checkpoints(workdir: str) -> bool:
    return bool(saved_steps(workdir))


def make_workdir(workdir: str) -> None:
    """Creates the folder. Raises UserError if it cannot be created."""
    folder = epath.Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except PermissionError as e:
        raise cannot_write(f"The work folder {workdir}", e) from e
    except (OSError, ValueError) as e:
        raise UserError(
            f"The work folder {workdir} cannot be created: {e}. Use another --workdir."
        ) from e


def check_same_run(workdir: str, config, log) -> None:
    """Raises UserError, naming the keys, if the run in workdir cannot resume with config."""
    if any(paths.exists(epath.Path(workdir) / name) for name in (ORIGIN, adapters.ORIGIN)):
        raise UserError(
            f"{workdir} holds an imported model, which has no optimizer state to resume from. "
            f"Train in another --workdir with --config.init_from={workdir}."
        )
    old = dict(config_lib.sorted_leaves(_with_defaults(read_config(workdir), config)))
    new = dict(config_lib.sorted_leaves(config))
    changed = [k for k in sorted({*old, *new}) if _plain(old.get(k)) != _plain(new.get(k))]
    free = modules.declared(config, "MAY_CHANGE")
    of_modules = tuple(f"{section}." for section in modules.SECTIONS)
    wrong = [
        k
        for k in changed
        if k in config_lib.FIXED
        or k in config_lib.FIXED_ZERO
        and bool(old.get(k)) != bool(new.get(k))
        or k.startswith(of_modules)
        and not any(fnmatch.fnmatchcase(k, p) for p in free)
    ]
    if wrong:
        value = lambda values, k: repr(values[k]) if k in values else "absent"
        text = "; ".join(
            f"{k} was {value(old, k)}, now {value(new, k)}" for k in _without_keys_of_modules(wrong)
        )
        raise UserError(
            f"{workdir} holds a run with another config, which cannot resume with this one: "
            f"{text}. Use another --workdir (with --config.init_from={workdir} to start from its "
            "parameters), or the config of that run."
        )
    for k in changed:
        log(f"Changed since this run was last started: {k} from {old.get(k)!r} to {new.get(k)!r}.")


def _without_keys_of_modules(keys: list[str]) -> list[str]:
    """The keys without those of a section whose `name` or `kind`, its module, is among them."""
    names = [k for k in keys if k in {f"{section}.name" for section in modules.SECTIONS}]
    names += [k for k in keys if k.endswith(".kind") and k.split(".")[0] in modules.SECTIONS]
    return [
        k
        for k in keys
        if not any(k != name and k.startswith(name[: -len("name")]) for name in names)
    ]


def _with_defaults(old, config):
    """A saved config with default values for fields that its modules have gained since, if config
    names the same modules."""
    filled = old.copy_and_resolve_references()
    if any(old[section].name != config[section].name for section in modules.SECTIONS):
        return old
    try:
        with filled.unlocked():
            filled.python_path = config.python_path  # the folder may have been moved
            modules.fill(filled, *(f"evals.{name}" for name in old.evals))
            filled.python_path = old.python_path
    except UserError:  # such as for a removed field, which is then reported as a change
        return old
    return filled


def write_config(folder: epath.Path, config) -> None:
    """Writes config.json atomically."""
    if jax.process_index() == 0:
        paths.write_atomically(folder / "config.json", (config_lib.to_json(config) + "\n").encode())


def existing(workdir: str) -> epath.Path:
    """The folder of a run. Raises UserError if workdir is not one, or cannot be read."""
    if not workdir or not paths.exists(epath.Path(workdir) / "config.json"):
        raise UserError(
            f"{workdir!r} is not the work folder of a run: it has no config.json. Set --workdir to "
            "the folder of a run."
        )
    return epath.Path(workdir)


def read_config(workdir: str):
    """The config of a work folder."""
    path = existing(workdir) / "config.json"
    return config_lib.from_json(path.read_bytes(), str(path))


def _plain(value):
    return list(value) if isinstance(value, tuple) else value  # JSON has no tuples
