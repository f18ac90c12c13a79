"""The flags of a command line."""

from collections.abc import Callable
from typing import Any

from absl import flags

from bigjax import cloud, paths
from bigjax import config as config_lib
from bigjax.errors import UserError

_KEY = "--config."
# What each command takes and uses, see Arguments: a flag or a key that is not here is refused.
_MODEL = ("model", "mesh", "hosts", "train.ema")  # keys of those that open a run's work folder
_ROWS = (*_MODEL, "task", "train.batch_size")
# Of these keys and sections, what is settled: a run's tokenizer is in its folder, and nothing is
# dropped.
_SETTLED = (
    "data.tokenizer",
    *(f"model.{part}dropout" for part in ("", "attention_", "click_", "discriminator_")),
)
_OF_A_RUN = dict(config=False, workdirs=1, unused=_SETTLED)
_FORM = ("data.columns", "data.seq_len", "data.packing", "data.truncate", "data.doc_stride")
_TEXT = (
    "data.sources",
    "data.tokenizer",
    "data.valid_fraction",
    "data.test_fraction",
    "data.on_bad_utf8",
    "data.cache_dir",
)
TAKES = {
    "train": dict(workdirs=1),
    "eval": dict(**_OF_A_RUN, keys=(*_ROWS, "data", "seed", "oracle", "evals"), texts=("step",)),
    "predict": dict(
        **_OF_A_RUN,
        keys=(*_ROWS, *_FORM),
        texts=("input", "output", "step"),
        file_flags=("input", "output"),
    ),
    "generate": dict(**_OF_A_RUN, keys=_MODEL, texts=("step",)),
    "headline": dict(
        **_OF_A_RUN,
        keys=(*_MODEL, "task", "data.columns", "data.truncate"),
        file_flags=("article", "output", "hot_words"),
    ),
    "configs": dict(config=False, workdirs=0, keys=()),
    "config": dict(workdirs=1),
    "checkpoint": dict(**_OF_A_RUN, keys=(), texts=("step",)),
    "report": dict(config=False, workdirs=2, keys=(), texts=("out",), file_flags=("out",)),
    "tokenizer": dict(workdirs=0, keys=(*_TEXT, "init_from"), texts=("out",), file_flags=("out",)),
    "embeddings": dict(
        workdirs=0, keys=("data", "model", "seed"), texts=("out",), file_flags=("out",)
    ),
    "plan": dict(
        workdirs=0,
        keys=("model", "task", "data", "oracle", "optim", "train", "mesh", "seed", "init_from"),
        file_flags=("calibrate",),
    ),
    "import": dict(
        config=False,
        workdirs=1,
        keys=("seed", "data", "evals", "mesh", "hosts", "train.batch_size"),
        texts=("from",),
        file_flags=("from",),
    ),
    "export": dict(**_OF_A_RUN, keys=(), texts=("to", "dtype", "step"), file_flags=("to",)),
}
TAKES["seqgan-report"] = TAKES["report"]


class Arguments:
    """The flags of a command line. A command takes those that it uses, and refuses the others.

    config: whether it uses --config=FILE[:VARIANT]. workdirs: how many --workdir=FOLDER: 0, 1, or 2
    for any number. keys: the config keys and sections that it uses, ("",) for all, but for those
    of unused. texts: flags whose default is None. define(flags) adds others. file_flags: those of
    texts and define that name files or folders; an empty one is refused, and `~` is expanded.
    """

    def __init__(
        self,
        argv: list[str],
        define: Callable[[flags.FlagValues], None] | None = None,
        *,
        config: bool = True,
        workdirs: int = 2,
        keys: tuple[str, ...] = ("",),
        unused: tuple[str, ...] = (),
        texts: tuple[str, ...] = (),
        file_flags: tuple[str, ...] = (),
    ):
        self._keys, self._unused = keys, unused
        self.overrides = [a for a in argv if a.startswith(_KEY)]
        rest = [a for a in argv if not a.startswith(_KEY)]
        self.flags = flags.FlagValues()
        if config:
            flags.DEFINE_string("config", None, "", flag_values=self.flags)
        if workdirs:
            flags.DEFINE_multi_string("workdir", [], "", flag_values=self.flags)
        for name in texts:
            flags.DEFINE_string(name, None, "", flag_values=self.flags)
        if define:
            define(self.flags)
        self._check_taken(rest)
        try:
            extra = self.flags(["bigjax", *rest])[1:]
        except flags.Error as e:
            raise UserError(f"{str(e).rstrip('.')}. {self._taken()}") from e
        if extra:
            raise UserError(f"What is {extra[0]!r}? Arguments are written --NAME=VALUE.")
        if workdirs == 1 and len(self.flags.workdir) > 1:
            raise UserError("This command takes one --workdir=FOLDER; it was given several times.")
        self._expand(("config", "workdir", *file_flags))
        for folder in self.flags.workdir if workdirs else ():
            paths.check_run_folder(folder, "--workdir")
        cloud.check(_texts(self.flags.flag_values_dict().values()))

    def _taken(self) -> str:
        names = [f"--{name}" for name in self.flags]
        if self._keys:
            names.append(f"{_KEY}KEY=VALUE" + (" of " * ("" not in self._keys)))
            names[-1] += ", ".join(k for k in self._keys if k)
            if self._unused:
                names[-1] += f" (but for {', '.join(self._unused)})"
        return f"Flags of this command: {', '.join(names)}." if names else "It takes no flags."

    def uses(self, key: str) -> bool:
        """Whether the command uses this config key."""
        within = lambda keys: any(not k or key == k or key.startswith(f"{k}.") for k in keys)
        return within(self._keys) and not within(self._unused)

    def _check_taken(self, rest: list[str]) -> None:
        """Refuses what other commands take and this one would not use."""
        for argument in self.overrides:
            key = argument.removeprefix(_KEY).partition("=")[0]
            if not self.uses(key):
                raise UserError(
                    f"{argument}: this command does not use config.{key}, so it would change "
                    f"nothing: leave it out. {self._taken()}"
                )
        for name in ("config", "workdir"):
            given = any(a == f"--{name}" or a.startswith(f"--{name}=") for a in rest)
            if given and name not in self.flags:
                raise UserError(f"This command does not use --{name}. {self._taken()}")

    def _expand(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.flags or not self.flags[name].present:
                continue
            value: Any = self.flags[name].value
            if "" in (value if isinstance(value, list) else [value]):
                raise UserError(f"--{name} is empty: write --{name}=PATH, or leave it out.")
            self.flags[name].value = (
                [paths.expand(v, f"--{name}") for v in value]
                if isinstance(value, list)
                else paths.expand(value, f"--{name}")
            )

    @property
    def workdir(self) -> str:
        """The one work folder."""
        if not self.flags.workdir:
            raise UserError("This command needs one --workdir=FOLDER.")
        return self.flags.workdir[0]

    @property
    def step(self) -> int | None:
        """--step: a number, 'best' by the run's checkpoint.best, or None for the newest."""
        text = self.flags.step
        if text is None or text.isascii() and text.isdigit():
            return None if text is None else int(text)
        if text != "best":
            raise UserError(f"--step is {text!r}; give a number, or best.")
        from bigjax.train import load

        step = load.best_step(self.workdir)
        if step is None:
            raise UserError(
                f"{self.workdir!r} has no saved step that was evaluated by its checkpoint.best "
                "with a finite value yet."
            )
        return step

    def config(self, base=None):
        """(config, {overridden key: its former value}); base: a config that replaces --config.

        `~` in its paths is expanded (config.keys.PATHS), so that a run's config.json names the
        files that it read.
        """
        from bigjax import models, tasks

        if base is None:
            base = config_lib.load_file(self.flags.config or config_lib.DEFAULT_CONFIG)
        config = base.copy_and_resolve_references().lock()
        names = tuple(f"{_KEY}{s}.name=" for s in ("model", "task"))
        config_lib.override(config, [a for a in self.overrides if a.startswith(names)])
        modules = {"model": models, "task": tasks}
        fields = {s: module.all_fields(config[s]) for s, module in modules.items()}
        types = {s: module.field_types(config[s]) for s, module in modules.items()}
        before = {f"{s}.{k}": v for s in fields for k, v in fields[s].items()}
        before.update(config_lib.sorted_leaves(config))
        before.update({f"{s}.name": base[s].name for s in fields})
        keys = config_lib.override(config, self.overrides, fields, types)
        config_lib.expand_paths(config)
        for section, module in modules.items():
            if config[section].get("preset") != "init_from":  # else they are found at the start
                with config.unlocked():
                    config[section].update(module.all_fields(config[section]))
        cloud.check(_texts(value for _, value in config_lib.sorted_leaves(config)))
        return config, {k: before.get(k) for k in keys}


def _texts(values) -> list[str]:
    """Those of the values that are texts, and those in lists."""
    flat = [x for value in values for x in (value if isinstance(value, (list, tuple)) else [value])]
    return [x for x in flat if isinstance(x, str)]
