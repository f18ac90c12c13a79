"""The flags of a command line, declared once for parsing and for --help."""

from collections.abc import Callable
import fnmatch
import pathlib
import re
import textwrap
from typing import Any, NamedTuple

from absl import flags

from bigjax import cloud, paths
from bigjax import config as config_lib
from bigjax.errors import UserError

_KEY = "--config."
_EVALUATOR = re.compile(r"--config\.evals\.([^.=]+)\.kind=(.*)", re.DOTALL)
# Config keys of the commands that open a run's work folder, and of those that also read data.
MODEL = ("model", "mesh", "hosts", "train.ema", "python_path", "peft.base")
ROWS = (*MODEL, "task", "train.batch_size")
# Exceptions: the run's own tokenizer is used, and there is no dropout outside training.
SETTLED = ("data.tokenizer", "model.*dropout")


class Flag(NamedTuple):
    """A flag of a command: --NAME=VALUE.

    default: its type is the flag's type; a list: the flag may be repeated; None: an optional text.
    value: the placeholder in --help. A FILE or FOLDER must not be empty, and `~` in it is expanded.
    """

    name: str
    help: str
    default: Any = None
    value: str = ""

    def define(self, f: flags.FlagValues) -> None:
        makers: dict[type, Callable[..., Any]] = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            list: flags.DEFINE_multi_string,
        }
        make = makers.get(type(self.default))
        (make or flags.DEFINE_string)(self.name, self.default, "", flag_values=f)

    def usage(self) -> tuple[str, str]:
        """(the flag with its placeholder, its help text with the default)."""
        name, default = f"--{self.name}", self.default
        if isinstance(default, bool):
            on = f"--[no]{self.name}", f"{self.help} (default true)"
            return on if default else (name, self.help)
        values = {int: "N", float: "X"}.get(type(default), "TEXT")
        shown = "" if default in (None, "", []) else f" (default {default})"
        return f"{name}={self.value or values}", self.help + shown


class Positional(NamedTuple):
    """Arguments of a command that are no flags, any number of them: paths, in which `~` is
    expanded. name: the placeholder in --help."""

    name: str
    help: str


STEP = Flag("step", "a saved step, or best (by checkpoint.best); default: the latest", value="N")
JSON = Flag("json", "also prints the numbers as JSON on the last line", False)


class Command(NamedTuple):
    """The flags and config keys that a command accepts; any other is refused.

    flags: those beside --config, --config.KEY and --workdir. config: whether it accepts
    --config=FILE[:VARIANT]. workdirs: how many --workdir=FOLDER: 0, 1, or 2 for any number. keys:
    the config keys (patterns) and sections that it uses, ("",) for all; unused: exceptions.
    positional: what arguments that are no flags are; None refuses them.
    """

    flags: tuple[Flag, ...] = ()
    config: bool = False
    workdirs: int = 1
    keys: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    positional: Positional | None = None

    def usage(self) -> str:
        """The help text of all flags."""
        rows = [(f"{self.positional.name} ...", self.positional.help)] if self.positional else []
        if self.config:
            rows.append(("--config=FILE[:VARIANT]", f"default {config_lib.DEFAULT_CONFIG}"))
        if self.keys:
            every = "any key that `bigjax config` prints"
            some = f"keys of {', '.join(self.keys)}"
            but = f", except {', '.join(self.unused)}" if self.unused else ""
            rows.append((f"{_KEY}KEY=VALUE", (every if "" in self.keys else some) + but))
        if self.workdirs:
            several = "; may be repeated" if self.workdirs > 1 else ""
            rows.append(("--workdir=FOLDER", f"the folder of a run{several}"))
        rows += [flag.usage() for flag in self.flags]
        width = min(26, max((len(name) for name, _ in rows), default=0)) + 2
        lines = []
        for name, text in rows:
            parts = textwrap.wrap(text, 98 - width)
            first = f"  {name:<{width}}"
            if len(name) > width - 2:  # too long for one line with its text
                lines.append(f"  {name}")
                first = " " * (width + 2)
            lines += [first + parts[0], *(" " * (width + 2) + part for part in parts[1:])]
        return "\n".join(lines)


def _flag_error(text: str) -> str:
    """A message of absl as a sentence."""
    for pattern, plain in (
        (r"Did you mean: (.*?) ?\?", r"Did you mean --\1?"),
        (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer"),
        (r"could not convert string to float: (.*)", r"\1 is not a number"),
        (r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false"),
    ):
        text = re.sub(pattern, plain, text)
    text = text.rstrip(".")
    return text if text.endswith("?") else f"{text}."


class Arguments:
    """The parsed flags of a command line."""

    def __init__(self, argv: list[str], command: Command | None = None):
        """command: by default one that accepts a config, work folders and every key."""
        command = command or Command(config=True, workdirs=2, keys=("",))
        self._keys, self._unused = command.keys, command.unused
        self._positional = command.positional
        self.overrides = [a for a in argv if a.startswith(_KEY)]
        rest = [a for a in argv if not a.startswith(_KEY)]
        self.flags = flags.FlagValues()
        if command.config:
            flags.DEFINE_string("config", None, "", flag_values=self.flags)
        if command.workdirs:
            flags.DEFINE_multi_string("workdir", [], "", flag_values=self.flags)
        for flag in command.flags:
            flag.define(self.flags)
        self._check_accepted(rest)
        # Else the first argument that is no flag would end the flags.
        self.flags.set_gnu_getopt(command.positional is not None)
        try:
            extra = self.flags(["bigjax", *rest])[1:]
        except flags.Error as e:
            raise UserError(f"{_flag_error(str(e))} {self._accepted()}") from e
        if extra and not command.positional:
            raise UserError(
                f"{extra[0]!r} is not a flag: write arguments as --NAME=VALUE. {self._accepted()}"
            )
        if command.workdirs == 1 and (given := self.flags.workdir)[1:]:
            raise UserError(
                f"This command accepts one --workdir=FOLDER; got {len(given)}: {', '.join(given)}."
            )
        files = [flag.name for flag in command.flags if flag.value in ("FILE", "FOLDER")]
        self._expand(("config", "workdir", *files))
        for folder in self.flags.workdir if command.workdirs else ():
            paths.check_run_folder(folder, "--workdir")
        name = command.positional.name if command.positional else ""
        if "" in extra:
            raise UserError(f"A {name} is empty: write its path, or remove it.")
        # Those that are no flags; only for a command with `positional`.
        self.positional = [paths.expand(x, name, paths.DATA_SCHEMES) for x in extra]
        cloud.check([*_texts(self.flags.flag_values_dict().values()), *self.positional])

    def _accepted(self) -> str:
        names = [f"--{name}" for name in self.flags]
        if self._keys:
            names.append(f"{_KEY}KEY=VALUE" + (" of " * ("" not in self._keys)))
            names[-1] += ", ".join(k for k in self._keys if k)
            if self._unused:
                names[-1] += f" (except {', '.join(self._unused)})"
        if self._positional:
            names.append(f"{self._positional.name} ...")
        if not names:
            return "This command accepts no flags."
        return f"Flags of this command: {', '.join(names)}."

    def uses(self, key: str) -> bool:
        """Whether the command uses this config key."""
        within = lambda keys: any(
            not k or fnmatch.fnmatchcase(key, k) or key.startswith(f"{k}.") for k in keys
        )
        return within(self._keys) and not within(self._unused)

    def _check_accepted(self, rest: list[str]) -> None:
        """Refuses flags and config keys of other commands that this one would not use."""
        for argument in self.overrides:
            key = argument.removeprefix(_KEY).partition("=")[0]
            if not self.uses(key):
                section = key.partition(".")[0]
                if section not in (known := config_lib.new_config()):
                    raise UserError(
                        f"Unknown config key {key!r}. {config_lib.nearest(section, known)}"
                    )
                raise UserError(
                    f"{argument}: this command does not use config.{key}, so it would have no "
                    f"effect. Remove it. {self._accepted()}"
                )
        for name in ("config", "workdir"):
            given = any(a == f"--{name}" or a.startswith(f"--{name}=") for a in rest)
            if given and name not in self.flags:
                raise UserError(f"This command does not use --{name}. {self._accepted()}")

    def _expand(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.flags or not self.flags[name].present:
                continue
            value: Any = self.flags[name].value
            if "" in (value if isinstance(value, list) else [value]):
                raise UserError(f"--{name} is empty: write --{name}=PATH, or remove it.")
            self.flags[name].value = (
                [paths.expand(v, f"--{name}") for v in value]
                if isinstance(value, list)
                else paths.expand(value, f"--{name}")
            )

    @property
    def workdir(self) -> str:
        """--workdir, for a command with one work folder."""
        if not self.flags.workdir:
            raise UserError("This command needs one --workdir=FOLDER.")
        return self.flags.workdir[0]

    @property
    def step(self) -> int | None:
        """--step: a number, 'best' by the run's checkpoint.best, or None for the latest."""
        text = self.flags.step
        if text is None or text.isascii() and text.isdigit():
            return None if text is None else int(text)
        if text != "best":
            raise UserError(f"--step is {text!r}; it must be the number of a saved step, or best.")
        from bigjax.train import load

        step = load.best_step(self.workdir)
        if step is None:
            raise UserError(
                f"--step=best: no saved step of {self.workdir!r} has a finite value of the metric "
                "of its checkpoint.best yet. Give a number instead."
            )
        return step

    def config_of_run(self):
        """The config of --workdir with overrides applied."""
        from bigjax.train import workdir as workdir_lib

        config, _ = self.config(workdir_lib.read_config(self.workdir))
        config_lib.check_numbers(config, self.uses)
        return config

    def config(self, base=None):
        """(config, {overridden key: its former value}); base: a config that replaces --config.

        `~` in paths is expanded, so that a run's config.json names the files that it has read.
        """
        from bigjax import modules

        folder = complete_file = None
        if base is None:
            file = self.flags.config or config_lib.DEFAULT_CONFIG
            base, complete_file = config_lib.load(file)
            folder = config_lib.folder_of(file)
        config = base.copy_and_resolve_references().lock()
        # Keys that select modules first: the fields of these modules are the other keys.
        selects = re.compile(rf"{_KEY}((model|task|data|peft)\.name|python_path)=")
        names = config_lib.override(config, [a for a in self.overrides if selects.match(a)])
        if "peft.name" in names and not config.peft.name:  # off
            with config.unlocked():
                config.peft = {"name": ""}
        config_lib.expand_paths(config)
        config_lib.set_python_path(config, folder or pathlib.Path.cwd())
        kinds_of = dict(m.groups() for a in self.overrides if (m := _EVALUATOR.fullmatch(a)))
        modules.set_evaluators(config, kinds_of)
        self._check_evaluators(config)
        # Overrides apply before the modules' fields are filled in: some follow from others.
        complete = modules.filled(config)
        before = dict(config_lib.sorted_leaves(complete))
        before.update({key: config_lib.get(base, key) for key in names})
        old_kinds = {name: base.evals.get(name, {}).get("kind") for name in kinds_of}
        before.update({f"evals.{name}.kind": kind for name, kind in old_kinds.items()})
        names += [f"evals.{name}.kind" for name in kinds_of]
        rest = [a for a in self.overrides if not (selects.match(a) or _EVALUATOR.fullmatch(a))]
        kinds = "|".join(
            re.escape(f"{section}.kind") for section in modules.inner_sections(complete)
        )
        inner = [a for a in rest if re.match(rf"{_KEY}({kinds})=", a)]
        keys = [*names, *config_lib.override(config, inner, complete, modules.types(complete))]
        config_lib.set_python_path(config, folder or pathlib.Path.cwd())
        for section in {key.rpartition(".")[0] for key in keys if key not in names}:
            modules.change_kind(config, section, config_lib.get(config, section).kind)
        complete = modules.filled(config)
        rest = [a for a in rest if a not in inner]
        keys += config_lib.override(config, rest, complete, modules.types(complete))
        modules.fill(config, *["model"] * (config.model.get("preset") == "init_from"))
        config_lib.expand_paths(config, modules.path_schemes(config))
        for name in kinds_of:
            if name not in base.evals and f"evals.{name}.every" not in keys:
                config.evals[name].every = config.train.steps  # only at the end
        if complete_file:
            complete_file(config, frozenset(keys))
        cloud.check(_texts(value for _, value in config_lib.sorted_leaves(config)))
        return config, {k: before.get(k) for k in keys}

    def _check_evaluators(self, config) -> None:
        """Refuses keys of evaluators that the config lacks."""
        from bigjax import modules

        for argument in self.overrides:
            section, _, rest = argument.removeprefix(_KEY).partition("=")[0].partition(".")
            name, dot, _ = rest.partition(".")
            if section == "evals" and dot and name not in config.evals:
                raise UserError(
                    f"{argument}: config.evals has no {name!r}. "
                    f"{config_lib.nearest(name, config.evals)} To add it, give also --config.evals."
                    f"{name}.kind=KIND, such as {', '.join(modules.names('evals'))}."
                )


def _texts(values) -> list[str]:
    """The values that are strings, also within lists."""
    flat = [x for value in values for x in (value if isinstance(value, (list, tuple)) else [value])]
    return [x for x in flat if isinstance(x, str)]
