"""Every key of a config, with its default. Config files start from `new_config()`."""

from collections.abc import Sequence

from ml_collections import ConfigDict

# Their keys are not fixed here.
OPEN_SECTIONS = ("model", "task", "evals", "data.sources", "train.compiler_options")

# Files and folders that a person names: `~` in them is that person's home folder. (So it is in
# data.cache_dir and train.compilation_cache, but of whoever runs a command: they stay as written.)
DATA_PATHS = ("data.train", "data.valid", "data.test", "data.sources.*.path")
PATHS = (
    "init_from",
    "resume_from",
    *DATA_PATHS,
    "data.tokenizer.path",
    "oracle.params",
    "task.hot_words_file",
    "task.thesaurus",
    "task.embeddings",
)

# Of what the entries of a list are, where its default has none.
ELEMENTS = {"evals.*.temperatures": float}


def new_config() -> ConfigDict:
    """Every key and its default. Config files assign to it; an unknown key is an error."""
    c = ConfigDict()
    c.seed = 0  # weights, data order and dropout all follow from it
    c.init_from = ""  # a run's work folder or a Hugging Face folder to take parameters from
    c.init_reset = ""  # regex over parameter paths: which start anew in spite of init_from
    c.resume_from = ""  # a run's work folder to take everything from, if this one has nothing

    # The module, a published size (or 'init_from': the sizes found there), any of its fields.
    c.model = dict(name="gpt", preset="")
    c.task = dict(name="causal_lm")  # the module, and any of its fields

    c.data = ConfigDict()  # text comes from `sources`; labelled examples from `train` and so on
    c.data.sources = dict(docstrings=text_source("docstrings"))
    c.data.tokenizer = ConfigDict()
    # sentencepiece, wordpiece, bpe (GPT-2's byte level), bytes, or init_from: the one found there
    c.data.tokenizer.kind = "sentencepiece"
    c.data.tokenizer.path = ""  # its file or folder; '' trains one (sentencepiece, wordpiece)
    c.data.tokenizer.vocab_size = 4096  # of one that is trained
    c.data.tokenizer.lowercase = True  # wordpiece: text is lower-cased, accents taken off
    c.data.seq_len = 256  # tokens of an example
    c.data.packing = True  # text: attention stays within a document; labelled: examples share rows
    c.data.valid_fraction = 0.01  # of the documents, chosen by a hash of their content
    c.data.test_fraction = 0.01
    c.data.on_bad_utf8 = "replace"  # replace (and count; up to 1% of a file or source) or refuse
    c.data.cache_dir = "~/.cache/bigjax"  # token stores and trained tokenizers
    c.data.train = ""  # labelled: FILE, tfds:NAME, docstrings:library, docstrings:title
    c.data.valid = ""  # '' cuts it from train, by a hash of the text
    c.data.test = ""
    c.data.columns = ConfigDict()  # of labelled files: a name, or a number where there is no header
    c.data.columns.text = "text"
    c.data.columns.pair = ""  # the second text; '' = there is none
    c.data.columns.label = "label"
    c.data.columns.question = "question"  # of task 'answer'
    c.data.columns.context = "context"
    c.data.columns.answers = "answers"
    c.data.columns.tokens = "tokens"  # of task 'tag'
    c.data.columns.tags = "tags"  # of task 'headline' its subjects, and the next five
    c.data.columns.headline = "headline"
    c.data.columns.article = "article"  # '' = there is none, as of the next three
    c.data.columns.clicks = ""
    c.data.columns.impressions = ""  # how often a headline was shown
    c.data.columns.published = ""  # a number or a date that orders rows; '' = as they are
    c.data.truncate = False  # cut labelled texts that are longer than seq_len, else refuse them
    c.data.doc_stride = 128  # tokens between windows over a long context

    c.oracle = ConfigDict()  # of task 'seqgan': the LSTM that writes the data
    c.oracle.params = ""  # an .npz file with param_0 to param_14; '' = drawn from N(0, 1)
    c.oracle.seed = 0  # of what is drawn, and of the sequences; the run's seed is another
    c.oracle.d_model = 32  # of one that is drawn
    c.oracle.sequences = 10_000  # in each of train, valid and test

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
    c.optim.layer_decay = 1.0  # factor of the learning rate from each layer to the one below
    c.optim.clip_norm = 1.0  # of the global gradient; 0 = off
    c.optim.offload = False  # its state waits in the hosts' memory while gradients are made

    c.train = ConfigDict()
    c.train.steps = 1000
    c.train.batch_size = 32  # rows of seq_len a step, over all devices and micro-batches
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
    c.hosts.lost_after = 60  # seconds without a sign of life, then the others end

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 3  # newest ones
    c.checkpoint.best = ""  # such as 'eval/valid/loss': the best saved step by it is kept too
    c.checkpoint.best_mode = "min"

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True

    c.evals = ConfigDict()  # NAME: evaluation(...)
    return c.lock()


def text_source(
    kind: str,
    path: str = "",
    *,
    name: str = "",
    field: str = "text",
    split: str = "train",
    weight: float = 1.0,
) -> dict:
    """A source of documents for `data.sources`.

    kind: docstrings (what every install carries), text (path: file or glob), jsonl (path, field)
    or tfds (name, field, split; path: its data folder). weight: its share of the examples.
    """
    return dict(kind=kind, path=path, name=name, field=field, split=split, weight=weight)


def evaluation(
    kind: str = "loss",
    *,
    every: int,
    split: str = "valid",
    batches: int = 0,
    prompt: str = "",
    tokens: int = 64,
    temperatures: Sequence[float] = (),
) -> dict:
    """An entry of `evals`: kind names a module of bigjax.evals.

    every: steps between two runs (it always runs at the end). split: of 'loss' and 'metrics' (all
    that labelled tasks have); batches: of 'loss' and 'headlines', 0 = all. prompt,
    tokens: of 'sample'. temperatures: of 'oracle', besides 1.
    """
    return dict(
        kind=kind,
        every=every,
        split=split,
        batches=batches,
        prompt=prompt,
        tokens=tokens,
        temperatures=[*temperatures],
    )


def laptop_size(c: ConfigDict) -> None:
    """The ':tiny' form of a language model's config: the same choices, small, on text that is
    there; decoders read bytes, encoders WordPiece."""
    with c.unlocked():
        c.model.update(
            max_len=64, d_model=64, n_layers=2, n_heads=4, d_ff=128, remat="none", dtype="float32"
        )
        if c.model.name == "gpt":
            c.model.update(vocab_size=264, n_kv_heads=min(c.model.get("n_kv_heads", 4), 4))
            c.data.tokenizer.kind, c.data.tokenizer.path = "bytes", ""
        else:
            c.model.vocab_size = c.data.tokenizer.vocab_size = 2048
            c.data.tokenizer.path = c.init_from = ""
    c.data.sources = dict(docstrings=text_source("docstrings"))
    c.data.seq_len = 64
    c.train.steps, c.train.batch_size, c.train.accumulate = 20, 8, 1
    c.optim.warmup_steps = 5
    c.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
    c.checkpoint.every, c.log.every = 10, 5
    c.evals = dict(valid=evaluation("loss", every=10, batches=4))
