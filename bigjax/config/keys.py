"""Every key of a config, with its default and range. Config files start from `new_config()`."""

import fnmatch

from ml_collections import ConfigDict

from bigjax.bounds import FRACTION, POSITIVE, SEED, SHARE, Range, at_least

# Their keys are not fixed here: modules declare them, see bigjax/modules.py.
OPEN_SECTIONS = ("model", "task", "data", "evals", "train.compiler_options")

# Files and folders that a person names: `~` in them is that person's home folder. Modules declare
# those of their sections. (In train.compilation_cache it is that of whoever runs a command.)
PATHS = ("init_from", "python_path", "resume_from")


def new_config() -> ConfigDict:
    """Every key and its default. Config files assign to it; an unknown key is an error."""
    c = ConfigDict()
    c.seed = 0  # weights, data order and dropout all follow from it
    c.init_from = ""  # a run's work folder or a Hugging Face folder to take parameters from
    c.init_reset = ""  # regex over parameter paths: which start anew in spite of init_from
    c.python_path = ""  # folder of modules of your own; '' = the config file's
    c.resume_from = ""  # a run's work folder to take everything from, if this one has nothing

    # Each names a module and sets fields of its Config: of bigjax/models, tasks and data, or, by a
    # name with a dot, of a project or one of your own. `bigjax config` prints all fields.
    c.model = dict(name="gpt", preset="")  # a published size; 'init_from': the sizes found there
    c.task = dict(name="causal_lm")
    c.data = dict(name="text")
    c.evals = ConfigDict()  # NAME: dict(kind=MODULE of bigjax/evals, every=STEPS, fields of it)

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
    c.optim.decay_params = r"(kernel|embedding)$"  # regex over parameter paths: which ones decay
    c.optim.freeze = ""  # regex over parameter paths: which ones are not trained
    c.optim.layer_decay = 1.0  # factor of the learning rate from each layer to the one below
    c.optim.clip_norm = 1.0  # of the global gradient; 0 = off
    c.optim.offload = False  # its state waits in the hosts' memory while gradients are made

    c.train = ConfigDict()
    c.train.steps = 1000
    c.train.batch_size = 32  # examples per step, over all devices and micro-batches
    c.train.accumulate = 1  # micro-batches a step
    c.train.compiler_options = {}  # XLA's for the step, NAME: value; `bigjax plan --search` finds
    c.train.ema = 0.0  # decay of the parameters' moving average, which evaluation uses; 0 = off

    c.train.profile = ""  # 'FIRST:LAST': an xprof trace of these steps, in WORKDIR/profile
    c.train.debug_nans = False  # names the operation that made a loss NaN (runs the step again)
    c.train.compilation_cache = ""  # a folder, local or gs://, for compiled steps; '' = off

    c.train.early_stop = ConfigDict()
    c.train.early_stop.metric = ""  # such as 'eval/valid/loss'; '' = off
    c.train.early_stop.mode = "min"  # min or max
    c.train.early_stop.patience = 3  # evaluations without improvement
    c.train.early_stop.min_delta = 0.0  # what counts as improvement

    c.mesh = ConfigDict()  # devices along each axis; one of them may be -1: all that are left
    c.mesh.data = -1  # parameters copied, batch cut
    c.mesh.fsdp = 1  # parameters and batch cut
    c.mesh.sequence = 1  # tokens of a row cut: for long contexts
    c.mesh.tensor = 1  # heads, MLP and vocabulary cut; tokens between the blocks

    c.hosts = ConfigDict()  # of a run on several: see README.md
    c.hosts.start_timeout = 300  # seconds in which all of them have to come
    c.hosts.heartbeat_timeout = 60  # seconds without a sign of life, then the others end

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 3  # newest ones
    c.checkpoint.best = ""  # such as 'eval/valid/loss': the best saved step by it is kept too
    c.checkpoint.best_mode = "min"

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True
    return c.lock()


def laptop_size(c: ConfigDict, tokenizer: dict, **model) -> None:
    """The ':tiny' form of a language model's config: the same choices, small, on the docstrings
    that every install carries. tokenizer: the section; model: what else is small in the model."""
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


# Of the keys of config.keys; modules declare their own.
RANGES = {
    "seed": SEED,
    "optim.learning_rate": POSITIVE,
    "optim.warmup_steps": at_least(0),
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
    "mesh.*": at_least(-1),  # that 0 is none is said by parallel/mesh.py, with the devices
    "hosts.start_timeout": at_least(1),
    "hosts.heartbeat_timeout": at_least(5),
    "checkpoint.every": at_least(1),
    "checkpoint.keep": at_least(1),
    "log.every": at_least(1),
    "evals.*.every": at_least(1),
}


def range_of(key: str) -> Range | None:
    """The range of a dotted key of the config, without those of modules."""
    return next((r for pattern, r in RANGES.items() if fnmatch.fnmatchcase(key, pattern)), None)
