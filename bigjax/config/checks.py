"""Refusing configs that no run can use, and dataclasses from their sections."""

import dataclasses
import difflib
import re
import typing

from ml_collections import ConfigDict

from bigjax.config.keys import OPEN_SECTIONS, evaluation, new_config, text_source
from bigjax.errors import UserError


def nearest(key: str, allowed) -> str:
    """'Did you mean X?' or the list of what is allowed."""
    near = difflib.get_close_matches(key, list(allowed), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(sorted(allowed))}."


def check_keys(config: ConfigDict) -> None:
    """Refuses a key that new_config() does not have, or lacks one it has, outside model/task."""

    def walk(have, want, prefix):
        for key in have:
            if key not in want:
                raise UserError(f"Unknown config key {prefix + key!r}. {nearest(key, want)}")
        for key, value in want.items():
            name = prefix + key
            if key not in have:
                raise UserError(
                    f"The config lacks the key {name!r}: start from bigjax.config.new_config()."
                )
            if isinstance(value, ConfigDict) and name not in OPEN_SECTIONS:
                if not isinstance(have[key], ConfigDict):
                    raise UserError(f"config.{name} is a section, but was set to {have[key]!r}.")
                walk(have[key], value, name + ".")

    walk(config, new_config(), "")
    for section, template in (
        ("evals", evaluation(every=1)),
        ("data.sources", text_source("text")),
    ):
        entries = config.evals if section == "evals" else config.data.sources
        for name, entry in entries.items():
            for key in set(entry) ^ set(template):
                raise UserError(
                    f"config.{section}.{name}: key {key!r} is "
                    + (f"unknown. {nearest(key, template)}" if key in entry else "missing.")
                )


def check_values(config: ConfigDict) -> None:
    """Refuses numbers and names that no run can use."""
    for key, low in (
        ("train.steps", 1),
        ("train.batch_size", 1),
        ("train.accumulate", 1),
        ("checkpoint.every", 1),
        ("checkpoint.keep", 1),
        ("log.every", 1),
        ("data.seq_len", 1),
        ("optim.warmup_steps", 0),
        ("optim.cooldown_steps", 0),
        ("optim.clip_norm", 0),
        ("train.early_stop.patience", 1),
        ("seed", 0),
        ("hosts.start_timeout", 1),
        ("hosts.lost_after", 5),
    ):
        if get(config, key) < low:
            raise UserError(f"config.{key} is {get(config, key)}; it must be at least {low}.")
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide into "
            f"train.accumulate={config.train.accumulate} micro-batches."
        )
    if not 0 <= config.train.ema < 1:
        raise UserError(f"train.ema is {config.train.ema}; it must be in [0, 1).")
    span = config.train.profile
    if span:
        found = re.fullmatch(r"(\d+):(\d+)", span)
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= config.train.steps:
            raise UserError(
                f"train.profile is {span!r}; it must be FIRST:LAST, two steps from 1 "
                f"to train.steps={config.train.steps}, such as '10:12', or ''."
            )
    if not config.optim.learning_rate > 0:
        raise UserError(
            f"optim.learning_rate is {config.optim.learning_rate}; it must be positive."
        )
    for name, entry in config.evals.items():
        for key, low in (("every", 1), ("batches", 0), ("tokens", 1)):
            if entry[key] < low:
                raise UserError(f"evals.{name}.{key} is {entry[key]}; it must be at least {low}.")
        if config.checkpoint.best.startswith(f"eval/{name}/") and (
            entry.every % config.checkpoint.every
        ):
            raise UserError(
                f"checkpoint.best={config.checkpoint.best!r} can only keep what is saved: "
                f"evals.{name}.every={entry.every} must be a multiple of "
                f"checkpoint.every={config.checkpoint.every}."
            )
    for key in ("train.early_stop.metric", "checkpoint.best"):
        metric = get(config, key)
        known = [f"eval/{n}/" for n, e in config.evals.items() if e.kind != "sample"]
        if metric and not metric.startswith(tuple(known)):
            raise UserError(
                f"config.{key}={metric!r} is no metric of an evaluation: it must "
                f"begin with one of {known}."
            )
    for key in ("train.early_stop.mode", "checkpoint.best_mode"):
        if get(config, key) not in ("min", "max"):
            raise UserError(f"config.{key} is {get(config, key)!r}; allowed: min, max.")


def get(config: ConfigDict, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def build(cls, section: ConfigDict, where: str, *, preset: dict | None = None):
    """A dataclass from a config section, checked key by key.

    section's values win over preset's, preset's over cls's defaults. The keys `name` and
    `preset` choose the module and the preset and are not fields.
    Raises UserError for an unknown key (naming the nearest) and for a wrong type.
    """
    types = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    values = dict(preset or {})
    for key, value in section.items():
        if key in ("name", "preset"):
            continue
        if key not in fields:
            raise UserError(f"Unknown config key '{where}.{key}'. {nearest(key, fields)}")
        want = types[key]
        if want is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if typing.get_origin(want) is tuple:
            want, value = tuple, tuple(value) if isinstance(value, list) else value
        if type(value) is not want:
            raise UserError(
                f"config.{where}.{key} must be {want.__name__}, but is "
                f"{type(value).__name__}: {value!r}"
            )
        values[key] = value
    return cls(**values)
