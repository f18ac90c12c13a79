"""The flags of a command line."""

from collections.abc import Callable

from absl import flags

from bigjax import cloud
from bigjax import config as config_lib
from bigjax.errors import UserError


class Arguments:
    """The flags of a command line: --config=, --config.KEY=VALUE, --workdir=, and its own: those
    that define(flags) adds, and `texts`, by default None."""

    def __init__(
        self,
        argv: list[str],
        define: Callable[[flags.FlagValues], None] | None = None,
        texts: tuple[str, ...] = (),
    ):
        self.overrides = [a for a in argv if a.startswith("--config.")]
        rest = [a for a in argv if not a.startswith("--config.")]
        self.flags = flags.FlagValues()
        flags.DEFINE_string(
            "config", None, "A config file, FILE.py or FILE.py:VARIANT.", flag_values=self.flags
        )
        flags.DEFINE_multi_string("workdir", [], "A run's folder.", flag_values=self.flags)
        for name in texts:
            flags.DEFINE_string(name, None, "", flag_values=self.flags)
        if define:
            define(self.flags)
        try:
            extra = self.flags(["bigjax", *rest])[1:]
        except flags.Error as e:
            raise UserError(
                f"{e} Flags: --config.KEY=VALUE, " + ", ".join(f"--{name}" for name in self.flags)
            ) from e
        if extra:
            raise UserError(f"What is {extra[0]!r}? Arguments are written --NAME=VALUE.")
        values = self.flags.flag_values_dict().values()
        cloud.check(_texts(values))

    @property
    def workdir(self) -> str:
        """The one work folder."""
        if len(self.flags.workdir) != 1:
            raise UserError("This command needs one --workdir=FOLDER.")
        return self.flags.workdir[0]

    @property
    def step(self) -> int | None:
        """--step: a number, 'best' by the run's checkpoint.best, or None for the newest."""
        text = self.flags.step
        if text is None or text.isdigit():
            return None if text is None else int(text)
        if text != "best":
            raise UserError(f"--step is {text!r}; give a number, or best.")
        from bigjax.train import load

        step = load.best_step(self.workdir)
        if step is None:
            raise UserError(
                f"{self.workdir!r} has no saved step that was evaluated by its checkpoint.best yet."
            )
        return step

    def config(self, base=None):
        """(config, {overridden key: its former value}); base: a config that replaces --config."""
        from bigjax import models, tasks

        if base is None:
            base = config_lib.load_file(self.flags.config or config_lib.DEFAULT_CONFIG)
        config = base.copy_and_resolve_references().lock()
        names = tuple(f"--config.{s}.name=" for s in ("model", "task"))
        config_lib.override(config, [a for a in self.overrides if a.startswith(names)], {})
        fields = {"model": models.all_fields(config.model), "task": tasks.all_fields(config.task)}
        before = {f"{s}.{k}": v for s in fields for k, v in fields[s].items()}
        before.update(config_lib.sorted_leaves(config))
        before.update({f"{s}.name": base[s].name for s in fields})
        keys = config_lib.override(config, self.overrides, fields)
        for section, module in (("model", models), ("task", tasks)):
            if config[section].get("preset") != "init_from":  # else they are found at the start
                with config.unlocked():
                    config[section].update(module.all_fields(config[section]))
        cloud.check(_texts(value for _, value in config_lib.sorted_leaves(config)))
        return config, {k: before.get(k) for k in keys}


def _texts(values) -> list[str]:
    """Those of the values that are texts, and those in lists."""
    flat = [x for value in values for x in (value if isinstance(value, (list, tuple)) else [value])]
    return [x for x in flat if isinstance(x, str)]
