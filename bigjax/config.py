"""Configs: every key with its default, loading a file, overrides, checks, and the saved copy.

A config file is Python with `get_config(variant='')`. It starts from `new_config()`, which holds
every key there is, and assigns what it chooses. The sections `model` and `task` name a module
(`bigjax.models.NAME`, `bigjax.tasks.NAME`) whose `Config` dataclass owns their other keys.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import traceback
import typing

from ml_collections import ConfigDict, config_flags
from absl import flags

from bigjax.errors import UserError

REPO = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = "configs/gpt/docstrings.py"
OPEN_SECTIONS = ("model", "task", "evals", "data.sources")  # their keys are not fixed here


def new_config() -> ConfigDict:
    """Every key and its default. Config files assign to it; an unknown key is an error."""
    c = ConfigDict()
    c.seed = 0  # weights, data order and dropout all follow from it
    c.init_from = ""  # a run's work folder to take parameters from (a new optimizer, step 0)
    c.resume_from = ""  # a run's work folder to take everything from, if this one has nothing

    c.model = dict(name="gpt", preset="")  # the module, its published size, and any of its fields
    c.task = dict(name="causal_lm")  # the module, and any of its fields

    c.data = ConfigDict()
    c.data.sources = dict(docstrings=text_source("docstrings"))
    c.data.tokenizer = ConfigDict()
    c.data.tokenizer.kind = "sentencepiece"  # sentencepiece, bpe (GPT-2's byte level), bytes
    c.data.tokenizer.path = ""  # .model file or folder; '' trains one (sentencepiece)
    c.data.tokenizer.vocab_size = 4096  # of a SentencePiece model that is trained
    c.data.seq_len = 256  # tokens of an example
    c.data.packing = True  # attention does not cross from one document to the next
    c.data.valid_fraction = 0.01  # of the documents, chosen by a hash of their content
    c.data.test_fraction = 0.01
    c.data.on_bad_utf8 = "replace"  # replace (and count) or refuse
    c.data.cache_dir = "~/.cache/bigjax"  # token stores and trained tokenizers

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw, lamb, adafactor, sgd
    c.optim.learning_rate = 1e-3  # at the peak of the schedule
    c.optim.schedule = "cosine"  # cosine, linear, rsqrt, constant
    c.optim.warmup_steps = 0  # linear from 0
    c.optim.cooldown_steps = 0  # linear down to final_fraction at the end (rsqrt, constant)
    c.optim.final_fraction = 0.0  # cosine, linear: of the peak at the end; else of the cool-down
    c.optim.b1 = 0.9  # Adam's and LAMB's first moment, SGD's momentum
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0  # decoupled
    c.optim.decay = r"(kernel|embedding)$"  # regex over parameter paths: which ones decay
    c.optim.freeze = ""  # regex over parameter paths: which ones are not trained
    c.optim.clip_norm = 1.0  # of the global gradient; 0 = off

    c.train = ConfigDict()
    c.train.steps = 1000
    c.train.batch_size = 32  # examples a step, over all devices and micro-batches
    c.train.accumulate = 1  # micro-batches a step
    c.train.ema = 0.0  # decay of the parameters' moving average, which evaluation uses; 0 = off

    c.train.early_stop = ConfigDict()
    c.train.early_stop.metric = ""  # such as 'eval/valid/loss'; '' = off
    c.train.early_stop.mode = "min"  # min or max
    c.train.early_stop.patience = 3  # evaluations without improvement
    c.train.early_stop.min_delta = 0.0  # what counts as improvement

    c.mesh = ConfigDict()  # devices along each axis; one of them may be -1: all that are left
    c.mesh.data = -1  # parameters copied, batch cut
    c.mesh.fsdp = 1  # parameters and batch cut
    c.mesh.tensor = 1  # heads, MLP and vocabulary cut

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 3  # newest ones
    c.checkpoint.best = ""  # such as 'eval/valid/loss': the best one by it is kept too
    c.checkpoint.best_mode = "min"

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True

    c.evals = ConfigDict()  # NAME: evaluation(...)
    return c.lock()


def text_source(kind: str, path: str = "", *, name: str = "", field: str = "text",
                split: str = "train", weight: float = 1.0) -> dict:
    """A source of documents for `data.sources`.

    kind: docstrings (what every install carries), text (path: file or glob), jsonl (path, field)
    or tfds (name, field, split; path: its data folder). weight: its share of the examples.
    """
    return dict(kind=kind, path=path, name=name, field=field, split=split, weight=weight)


def evaluation(kind: str = "loss", *, every: int, split: str = "valid", batches: int = 0,
               prompt: str = "", tokens: int = 64) -> dict:
    """An entry of `evals`: kind names a module of bigjax.evals.

    every: steps between two runs (it always runs at the end). split, batches (0 = all): for
    'loss'. prompt, tokens: for 'sample'.
    """
    return dict(kind=kind, every=every, split=split, batches=batches, prompt=prompt,
                tokens=tokens)


def laptop_size(c: ConfigDict) -> None:
    """The ':tiny' form of a decoder's config: the same choices, small, on text that is there."""
    with c.unlocked():
        c.model.update(vocab_size=264, max_len=64, d_model=64, n_layers=2, n_heads=4, d_ff=128,
                       n_kv_heads=min(c.model.get("n_kv_heads", 4), 4), remat="none",
                       dtype="float32")
    c.data.sources = dict(docstrings=text_source("docstrings"))
    c.data.tokenizer.kind, c.data.tokenizer.path = "bytes", ""
    c.data.seq_len = 64
    c.train.steps, c.train.batch_size, c.train.accumulate = 20, 8, 1
    c.optim.warmup_steps = 5
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = -1, 1, 1
    c.checkpoint.every, c.log.every = 10, 5
    c.evals = dict(valid=evaluation("loss", every=10, batches=4))


# --- Loading ---------------------------------------------------------------------------------

def find_config(path: str) -> pathlib.Path:
    """The file named by path: from here, else from the repository."""
    for root in (pathlib.Path.cwd(), REPO):
        if (root / path).is_file():
            return root / path
    have = [str(p.relative_to(REPO)) for p in config_files()]
    near = difflib.get_close_matches(path, have, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"There is no config file {path!r}.{hint} `bigjax configs` lists them all.")


def config_files() -> list[pathlib.Path]:
    """Every config in configs/."""
    return sorted(p for p in (REPO / "configs").rglob("*.py") if p.name != "__init__.py")


def load_file(spec: str) -> ConfigDict:
    """Runs a config file. spec is FILE or FILE:VARIANT, such as configs/gpt/docstrings.py:tiny."""
    path, _, variant = spec.partition(":")
    file = find_config(path)
    module_spec = importlib.util.spec_from_file_location("bigjax_config_file", file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"{path} fails to import, {_where(e, file)}: {_text(e)}") from e
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(variant='').")
    try:
        config = module.get_config(variant)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: get_config({variant!r}) fails, {_where(e, file)}: {_text(e)}"
                        ) from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict.")
    check_keys(config)
    return config.lock()


def _where(error: BaseException, file: pathlib.Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
             if f.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"line {lines[-1]}" if lines else "before its first line"


def _text(error: BaseException) -> str:
    """An exception's text; a KeyError or AttributeError of ml_collections quotes its message."""
    text = str(error.args[0]) if error.args else ""
    return f"{type(error).__name__}: {text}"


def variants(variant: str, **choices):
    """choices[variant], or a UserError that names what there is. '' needs no choice."""
    if variant and variant not in choices:
        raise UserError(f"This config has no variant {variant!r}; it has: "
                        f"{', '.join(choices) or 'none'}.")
    return choices.get(variant)


# --- Checking --------------------------------------------------------------------------------

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
                raise UserError(f"The config lacks the key {name!r}: start from "
                                "bigjax.config.new_config().")
            if isinstance(value, ConfigDict) and name not in OPEN_SECTIONS:
                if not isinstance(have[key], ConfigDict):
                    raise UserError(f"config.{name} is a section, but was set to {have[key]!r}.")
                walk(have[key], value, name + ".")

    walk(config, new_config(), "")
    for section, template in (("evals", evaluation(every=1)),
                              ("data.sources", text_source("text"))):
        entries = config.evals if section == "evals" else config.data.sources
        for name, entry in entries.items():
            for key in set(entry) ^ set(template):
                raise UserError(f"config.{section}.{name}: key {key!r} is "
                                + (f"unknown. {nearest(key, template)}" if key in entry
                                   else "missing."))


def check_values(config: ConfigDict) -> None:
    """Refuses numbers and names that no run can use."""
    for key, low in (("train.steps", 1), ("train.batch_size", 1), ("train.accumulate", 1),
                     ("checkpoint.every", 1), ("checkpoint.keep", 1), ("log.every", 1),
                     ("data.seq_len", 1), ("optim.warmup_steps", 0), ("optim.cooldown_steps", 0),
                     ("optim.clip_norm", 0), ("train.early_stop.patience", 1), ("seed", 0)):
        if get(config, key) < low:
            raise UserError(f"config.{key} is {get(config, key)}; it must be at least {low}.")
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.batch_size={config.train.batch_size} does not divide into "
            f"train.accumulate={config.train.accumulate} micro-batches.")
    if not 0 <= config.train.ema < 1:
        raise UserError(f"train.ema is {config.train.ema}; it must be in [0, 1).")
    if not config.optim.learning_rate > 0:
        raise UserError(f"optim.learning_rate is {config.optim.learning_rate}; it must be "
                        "positive.")
    for name, entry in config.evals.items():
        for key, low in (("every", 1), ("batches", 0), ("tokens", 1)):
            if entry[key] < low:
                raise UserError(f"evals.{name}.{key} is {entry[key]}; it must be at least {low}.")
        if config.checkpoint.best.startswith(f"eval/{name}/") and (
                entry.every % config.checkpoint.every):
            raise UserError(
                f"checkpoint.best={config.checkpoint.best!r} can only keep what is saved: "
                f"evals.{name}.every={entry.every} must be a multiple of "
                f"checkpoint.every={config.checkpoint.every}.")
    for key in ("train.early_stop.metric", "checkpoint.best"):
        metric = get(config, key)
        known = [f"eval/{n}/" for n, e in config.evals.items() if e.kind != "sample"]
        if metric and not metric.startswith(tuple(known)):
            raise UserError(f"config.{key}={metric!r} is no metric of an evaluation: it must "
                            f"begin with one of {known}.")
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
        if type(value) is not want:
            raise UserError(f"config.{where}.{key} must be {want.__name__}, but is "
                            f"{type(value).__name__}: {value!r}")
        values[key] = value
    return cls(**values)


# --- Overrides -------------------------------------------------------------------------------

def override(config: ConfigDict, arguments: list[str], extra_fields: dict[str, dict]) -> list[str]:
    """Applies --config.KEY=VALUE arguments in place and returns the keys they set.

    extra_fields: {'model': {field: default}, ...}: fields that may be set though the file leaves
    them at their default.
    """
    keys = []
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{argument}: write it as {argument}=VALUE.")
        keys.append(key)
        section, _, field = key.partition(".")
        if field in extra_fields.get(section, {}) and field not in config[section]:
            with config.unlocked():
                config[section][field] = extra_fields[section][field]
        _require(config, key, extra_fields)
    for key, argument in zip(keys, arguments):  # one at a time: the message names the wrong one
        values = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=values,
                                            sys_argv=["bigjax", argument])
            values(["bigjax", argument])
        except (flags.Error, ValueError, TypeError, SyntaxError) as e:
            raise UserError(f"{argument}: config.{key} takes a value of type "
                            f"{type(get(config, key)).__name__}. {e}") from e
    return keys


def _require(config: ConfigDict, key: str, extra_fields: dict[str, dict]) -> None:
    node, parts = config, key.split(".")
    for i, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or part not in node:
            allowed = list(node) if isinstance(node, ConfigDict) else []
            if i == 1:
                allowed += [f for f in extra_fields.get(parts[0], {}) if f not in allowed]
            raise UserError(f"Unknown config key {key!r}. {nearest(part, allowed)}")
        node = node[part]


def describe(config: ConfigDict, overridden: dict[str, object], color: bool = False) -> str:
    """The config as text, one key a line; overridden maps keys to what the file had."""
    lines = []
    for key, value in sorted_leaves(config):
        line = f"{key} = {value!r}"
        if key in overridden:
            line += f"   # overridden, was {overridden[key]!r}"
            line = f"\033[1m{line}\033[0m" if color else line
        lines.append(line)
    return "\n".join(lines)


def sorted_leaves(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted key, value) of every leaf, in the order of the file."""
    out = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out += sorted_leaves(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


# --- The saved copy --------------------------------------------------------------------------

def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, where: str) -> ConfigDict:
    try:
        config = ConfigDict(json.loads(text))
    except json.JSONDecodeError as e:
        raise UserError(f"{where} is not readable JSON ({e}). It is written when a run starts; "
                        "restore it, or start the run in a new work folder.") from e
    check_keys(config)
    return config.lock()


def first_docstring_line(path: pathlib.Path) -> str:
    """What a config file says of itself, without running it."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n")[0]
