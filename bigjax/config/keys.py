"""Every key of a config, with its default and range. Config files start from `new_config()`."""

import fnmatch
from typing import Any

from ml_collections import ConfigDict

from bigjax.bounds import FRACTION, POSITIVE, SEED, SHARE, Range, at_least

# Their keys are declared by modules, see bigjax/modules.py.
OPEN_SECTIONS = ("model", "task", "data", "peft", "evals", "train.compiler_options")

# Files and folders: `~` is expanded when the config is resolved. Modules declare those of their
# sections. (In train.compilation_cache `~` is expanded whenever a command runs.)
PATHS = ("init_from", "python_path", "resume_from")


def new_config() -> ConfigDict:
    """Every key with its default. Config files set keys of it; an unknown key is an error."""
    c = ConfigDict()
    c.seed = 0  # weights, data order and dropout all follow from it
    c.init_from = ""  # a run's work folder or a Hugging Face folder: initial parameters
    c.init_reset = ""  # regex over parameter paths: re-initialised despite init_from
    c.python_path = ""  # folder of your own modules; '' = that of the config file
    c.resume_from = ""  # a run's work folder to continue from, if this one is empty

    # Each names a module and sets fields of its Config: in bigjax/models, tasks, data or peft, or,
    # if the name has a dot, in a project or your own. `bigjax config` prints all fields.
    c.model = dict(name="gpt", preset="")  # a published size; 'init_from': the size of init_from
    c.task = dict(name="causal_lm")
    c.data = dict(name="text")
    c.peft = dict(name="")  # lora, adapter, prefix, prompt, bitfit; '' = all parameters are trained
    c.evals = ConfigDict()  # NAME: dict(kind=MODULE of bigjax/evals, every=STEPS, fields of it)

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw, lamb, adafactor, sgd
    c.optim.learning_rate = 1e-3  # at the peak of the schedule
    c.optim.schedule = "cosine"  # cosine, linear, rsqrt, flat_rsqrt, constant, step
    c.optim.warmup_steps = 0  # linear from 0
    c.optim.boundaries = ()  # step: after each of these steps the rate is a tenth of that before
    c.optim.cooldown_steps = 0  # linear down to final_fraction at the end (not cosine, linear)
    c.optim.final_fraction = 0.0  # of the peak, at the end (cosine, linear) or after the cool-down
    c.optim.b1 = 0.9  # Adam's and LAMB's first moment, SGD's momentum
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0  # decoupled
    c.optim.decay_params = r"(kernel|embedding)$"  # regex over parameter paths: with weight decay
    # Freezing some layers of a scanned stack fixes their values, but saves no memory or compute;
    # with model.scan=False it saves both.
    c.optim.freeze = ""  # regex over parameter paths: neither trained nor differentiated
    c.optim.layer_decay = 1.0  # factor of the learning rate per layer, from the top down
    c.optim.clip_norm = 1.0  # of the global gradient; 0 = off
    c.optim.offload = False  # keeps its state in host memory between updates

    c.train = ConfigDict()
    c.train.steps = 1000
    c.train.batch_size = 32  # examples per step, over all devices and micro-batches
    c.train.accumulate = 1  # micro-batches per step
    c.train.compiler_options = {}  # of XLA, NAME: value; see `bigjax plan --search`
    c.train.ema = 0.0  # decay of the parameters' moving average, used by evaluation; 0 = off

    c.train.profile = ""  # 'FIRST:LAST': an xprof trace of these steps, in WORKDIR/profile
    c.train.debug_nans = False  # names the operation that made a loss NaN (reruns the step)
    c.train.compilation_cache = ""  # a folder, local or gs://, for compiled steps; '' = off

    c.train.early_stop = ConfigDict()
    c.train.early_stop.metric = ""  # such as 'eval/valid/loss'; '' = off
    c.train.early_stop.mode = "min"  # min or max
    c.train.early_stop.patience = 3  # evaluations without improvement
    c.train.early_stop.min_delta = 0.0  # the smallest change that counts as improvement

    c.mesh = ConfigDict()  # devices along each axis; one may be -1: all remaining
    c.mesh.data = -1  # shards the batch, replicates parameters
    c.mesh.fsdp = 1  # shards parameters and batch
    c.mesh.sequence = 1  # shards the tokens of a row, for long contexts
    c.mesh.tensor = 1  # shards heads, MLP and vocabulary; tokens between blocks

    c.hosts = ConfigDict()  # for runs on several hosts
    c.hosts.start_timeout = 300  # seconds in which all hosts must join
    c.hosts.heartbeat_timeout = 60  # seconds without a heartbeat of a host until the others end

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 3  # number of newest checkpoints
    c.checkpoint.best = ""  # such as 'eval/valid/loss': also keeps the best saved step by it
    c.checkpoint.best_mode = "min"

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True
    return c.lock()


def laptop_size(c: ConfigDict, tokenizer: dict, **model) -> None:
    """The ':tiny' variant of a language model's config: the same options with a small model, on the
    docstrings of the installed packages. tokenizer: its section; model: further fields."""
    with c.unlocked():
        c.model.update(
            max_len=64, d_model=64, n_layers=2, n_heads=4, d_ff=128, remat="none", dtype="float32"
        )
        c.model.update(model)
        c.init_from = ""
        sources = dict(docstrings=dict(kind="docstrings"))
        c.data = {**c.data.to_dict(), "sources": sources, "tokenizer": tokenizer, "seq_len": 64}
    c.train.steps, c.train.batch_size, c.train.accumulate = 20, 8, 1
    c.optim.warmup_steps = 5
    c.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
    c.checkpoint.every, c.log.every = 10, 5
    c.evals = dict(valid=dict(kind="loss", every=10, batches=4))


# A resumed run must keep these keys, and keys of modules that do not declare them in MAY_CHANGE.
FIXED = ("seed", "optim.name", "optim.freeze", "train.batch_size")
# These may change, but not between zero and non-zero: the state would have other arrays.
FIXED_ZERO = ("optim.b1", "train.ema")

# Keys and sections that no compiled step depends on.
NOT_COMPILED = (
    *("checkpoint.", "evals.", "hosts.", "log.", "data.cache_dir", "init_from", "resume_from"),
    *("train.compilation_cache", "train.debug_nans", "train.profile"),
)

# Keys that a task with its own training step may not support, see tasks.Task.step_keys.
STEP_KEYS = ("optim.*", "train.accumulate", "train.ema", "train.debug_nans")

# Ranges of the keys of new_config(); modules declare those of their fields.
RANGES = {
    "seed": SEED,
    "optim.learning_rate": POSITIVE,
    "optim.warmup_steps": at_least(0),
    "optim.boundaries": at_least(1),
    "optim.cooldown_steps": at_least(0),
    "optim.final_fraction": SHARE,
    "optim.b1": FRACTION,
    "optim.b2": FRACTION,
    "optim.eps": POSITIVE,
    "optim.weight_decay": at_least(0),
    "optim.layer_decay": Range(0, 1, open_low=True),
    "optim.clip_norm": at_least(0),
    "train.steps": at_least(1),
    "train.batch_size": at_least(1),
    "train.accumulate": at_least(1),
    "train.ema": FRACTION,
    "train.early_stop.patience": at_least(1),
    "train.early_stop.min_delta": at_least(0),
    "mesh.*": at_least(-1),  # parallel/mesh.py refuses 0, naming the devices
    "hosts.start_timeout": at_least(1),
    "hosts.heartbeat_timeout": at_least(5),
    "checkpoint.every": at_least(1),
    "checkpoint.keep": at_least(1),
    "log.every": at_least(1),
    "evals.*.every": at_least(1),
}


# Of values that do not show their type, as an empty tuple.
TYPES: dict[str, Any] = {"optim.boundaries": tuple[int, ...]}


def range_of(key: str) -> Range | None:
    """The range of a dotted key of the config; None for keys of modules."""
    return next((r for pattern, r in RANGES.items() if fnmatch.fnmatchcase(key, pattern)), None)
