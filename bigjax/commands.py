"""The commands behind `bigjax`, one function each. Slow imports are inside them."""

import sys

from absl import flags, logging

import bigjax
from bigjax import config as config_lib
from bigjax import json_text
from bigjax.arguments import TAKES, Arguments
from bigjax.errors import UserError, cannot_write

DEFAULT_WORKDIR = "runs/gpt-docstrings"


def run(argv: list[str]) -> int:
    """Dispatches one command line (without the program's name)."""
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"bigjax {bigjax.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"There is no command {argv[0]!r}. {config_lib.nearest(argv[0], COMMANDS)}")
    if {"--help", "-h"} & {*argv}:
        print(COMMANDS[argv[0]].__doc__)
        return 0
    logging.set_verbosity(logging.FATAL)  # Orbax logs what it also raises
    COMMANDS[argv[0]](argv[1:])
    return 0


def _usage() -> str:
    lines = [
        "usage: bigjax COMMAND [--config=FILE[:VARIANT]] [--config.KEY=VALUE ...] "
        "[--workdir=FOLDER] ...",
        "",
    ]
    for name, function in COMMANDS.items():
        lines.append(f"  {name:<13} {function.__doc__.splitlines()[0]}")
    return "\n".join([*lines, "", "`bigjax COMMAND --help` says more."])


def _config_of_run(arguments: Arguments):
    """The config of --workdir with what was overridden."""
    from bigjax.train import workdir as workdir_lib

    config, _ = arguments.config(workdir_lib.read_config(arguments.workdir))
    config_lib.check_numbers(config, arguments.uses)  # a run of an earlier version had other bounds
    return config


def train(argv: list[str]) -> None:
    """Trains a model, or goes on training it.

    --config=FILE[:VARIANT]  default configs/gpt/docstrings.py
    --config.KEY=VALUE       any key that `bigjax config` prints
    --workdir=FOLDER         where everything is written; given again, training goes on there
    """
    arguments = Arguments(argv, **TAKES["train"])
    if not arguments.flags.workdir:
        if arguments.flags.config:
            raise UserError("--workdir=FOLDER is missing: where to write the run.")
        arguments.flags.workdir = [DEFAULT_WORKDIR]
    config, _ = arguments.config()
    from bigjax.train import run as run_lib

    run_lib.train(config, arguments.workdir)


def evaluate(argv: list[str]) -> None:
    """Evaluates a saved step of a run on all its evaluation sets.

    --workdir=FOLDER
    --step=N            or best (by checkpoint.best); default: the newest
    --config.KEY=VALUE  other data, batches, mesh: any key of the run's config
    --json              also prints the numbers as one line of JSON, last
    """
    arguments = Arguments(
        argv, lambda f: flags.DEFINE_bool("json", False, "", flag_values=f), **TAKES["eval"]
    )
    from bigjax import data, evals
    from bigjax.evals.context import Context
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    config = _config_of_run(arguments)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, config.train.batch_size)
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder) if folder.exists() else None  # an oracle has none
    splits = {entry.split for entry in config.evals.values()}
    corpus = loaded.task.load_data(print, tokenizer, splits)
    context = Context(
        config,
        loaded.task,
        corpus,
        loaded.mesh,
        print,
        workdir_lib.existing(arguments.workdir),
        report=print,
        unwritten=[],
    )
    numbers = {}
    for name, entry in config.evals.items():
        found = evals.build(name, entry, context)(loaded.params, loaded.extras, loaded.step)
        numbers.update({f"eval/{name}/{k}": v for k, v in found.items()})
    for key, value in numbers.items():
        print(f"{key:<32} {value:.6f}")
    for line in context.unwritten:
        print(line)
    if arguments.flags.json:
        print(json_text.dumps({"step": loaded.step, **numbers}))


def generate(argv: list[str]) -> None:
    """Writes text with a trained model.

    --workdir=FOLDER
    --prompt=TEXT       may be given several times
    --number=1          samples of each prompt
    --max_tokens=128    of a sample; by default fewer where model.max_len leaves no room for 128
    --temperature=0.8   0 takes the likeliest token
    --top_k=0           only the k likeliest tokens; 0 = all
    --top_p=0.95        only the likeliest tokens that together have this probability
    --stop=TEXT         ends a sample; may be given several times
    --seed=0
    --step=N            or best (by checkpoint.best); default: the newest
    """

    def define(f):
        flags.DEFINE_multi_string("prompt", [], "", flag_values=f)
        flags.DEFINE_multi_string("stop", [], "", flag_values=f)
        for name, default in (("number", 1), ("max_tokens", 128), ("top_k", 0), ("seed", 0)):
            flags.DEFINE_integer(name, default, "", flag_values=f)
        for name, default in (("temperature", 0.8), ("top_p", 0.95)):
            flags.DEFINE_float(name, default, "", flag_values=f)

    arguments = Arguments(argv, define, **TAKES["generate"])
    f = arguments.flags
    from bigjax import data, models
    from bigjax.config import bounds
    from bigjax.infer.generate import Generator, Options, continuation
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    if f.number < 1:
        raise UserError(f"--number is {f.number}; it must be at least 1.")
    if "" in f.stop:
        raise UserError("--stop is empty; give the text that ends a sample.")
    Options(f.max_tokens, f.temperature, f.top_k, f.top_p)  # refuses what cannot be
    bounds.check_seed(f.seed)
    for name in ("top_k", "top_p", "seed"):
        if not f.temperature and f[name].present:
            raise UserError(
                f"--{name} would change nothing: --temperature=0 takes the likeliest token. "
                "Leave one of the two out."
            )
    config = _config_of_run(arguments)
    tokenizer = data.load_tokenizer(workdir_lib.existing(arguments.workdir) / "tokenizer")
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    generator = Generator(models.module(config.model.name), loaded.task.model_config, loaded.params)
    prompts = [p for p in (f.prompt or [""]) for _ in range(f.number)]
    ids = [[tokenizer.bos_id, *t.tolist()] for t in tokenizer.encode_batch(prompts)]
    room = max(generator.config.max_len - max(map(len, ids)), 1)
    length = f.max_tokens if f["max_tokens"].present else min(f.max_tokens, room)
    options = Options(length, f.temperature, f.top_k, f.top_p, tokenizer.eos_id)
    for i, (prompt, new) in enumerate(zip(prompts, generator(ids, options, f.seed))):
        text = continuation(tokenizer, ids[i], new)
        for stop in f.stop:
            text = text.split(stop)[0]
        if len(prompts) > 1:
            print(f"--- {i + 1} of {len(prompts)}")
        print(prompt + text)


def predict(argv: list[str]) -> None:
    """Writes what a fine-tuned model says of each row of a file.

    --workdir=FOLDER
    --input=FILE     .tsv, .csv, .jsonl (.conll to tag, .json of SQuAD to answer); its columns
                     have the names they had in training, or --config.data.columns.text=NAME ...
    --output=FILE    .tsv, .csv or .jsonl: the rows with their predictions
    --step=N         or best (by checkpoint.best); default: the newest
    """
    arguments = Arguments(argv, **TAKES["predict"])
    f = arguments.flags
    if not f.input or not f.output:
        raise UserError("predict needs --input=FILE and --output=FILE.")
    from bigjax import data
    from bigjax.infer import predict as predict_lib
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    predict_lib.check_output(f.output, f.input)
    config = _config_of_run(arguments)
    kind = config.task.get("kind", config.task.name)
    if kind not in ("classify", "regress", "tag", "answer"):
        raise UserError(
            f"{arguments.workdir!r} was trained with task.name={config.task.name!r}; "
            "predictions are of the tasks classify, tag and answer."
        )
    rows = data.read_rows(f.input, config.data, kind, with_labels=False)
    tokenizer = data.load_tokenizer(workdir_lib.existing(arguments.workdir) / "tokenizer")
    examples = data.encode_rows(
        rows, config.data, kind, config.task.get("labels", ()), tokenizer, with_labels=False
    )
    if examples.cut:
        print(f"data: input: {examples.cut}")
    for line in data.unknown_warning(examples, rows, tokenizer, f.input):
        print(line)
    split = data.LabelledData(
        examples,
        tokenizer.pad_id,
        config.data.seq_len,
        config.train.batch_size,
        packing=config.data.packing,
        shuffle=False,
        name="input",
    )
    loaded = load_lib.load(arguments.workdir, config, arguments.step, config.train.batch_size)
    outputs, _ = predict_lib.outputs_of(
        loaded.task, loaded.mesh, loaded.params, loaded.extras, split, labelled=False
    )
    found = predict_lib.predictions(config, rows, examples, outputs)
    predict_lib.write(f.output, rows, found)
    if n := json_text.count_non_finite(found):
        print(
            f"note: {n:,} number(s) are not finite, and are null in .jsonl, empty in tables: the "
            "score of a row whose context has no text, or what a model gives that has diverged."
        )
    print(f"Wrote {f.output}: {len(rows):,} rows, step {loaded.step} of {arguments.workdir}")


def headline(argv: list[str]) -> None:
    """Writes headlines for an article, or one for each row of a table.

    --workdir=FOLDER --article=FILE   .txt: one article; .jsonl, .csv, .tsv, .parquet: rows
    --output=FILE  of rows   --previous=TEXT  published before (several)   --step=N or best
    --number=5  --beam=8, or --temperature=T --top_p=0.95 --seed=0: samples instead of a search
    --clicks=high|low  --hot_words=FILE   ranking: --real_weight=1 --click_weight=0
    """
    from bigjax.infer import headline as headline_lib
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    arguments = Arguments(argv, headline_lib.define_flags, **TAKES["headline"])
    config = _config_of_run(arguments)
    found = headline_lib.check(arguments.flags, config)
    headline_lib.command(
        arguments.flags,
        *found,
        load_lib.load(arguments.workdir, config, arguments.step, None),
        workdir_lib.existing(arguments.workdir),
    )


def list_configs(argv: list[str]) -> None:
    """Lists every config with the first line of its docstring."""
    Arguments(argv, **TAKES["configs"])
    for path in config_lib.config_files():
        print(f"{path.relative_to(config_lib.ROOT)!s:<32} {config_lib.first_docstring_line(path)}")


def show_config(argv: list[str]) -> None:
    """Prints a config with every key; overridden ones stand out.

    --config=FILE[:VARIANT] --config.KEY=VALUE, or --workdir=FOLDER for a run's own.
    """
    arguments = Arguments(argv, **TAKES["config"])
    if arguments.flags.workdir:
        if arguments.flags.config:
            raise UserError("Give --config or --workdir: the config of a file, or that of a run.")
        from bigjax.train import workdir as workdir_lib

        config, overridden = arguments.config(workdir_lib.read_config(arguments.workdir))
        config_lib.check_numbers(config, overridden.__contains__)
    else:
        config, overridden = arguments.config()
        config_lib.check_values(config)
    print(config_lib.describe(config, overridden, color=sys.stdout.isatty()))


def checkpoint(argv: list[str]) -> None:
    """Shows what a run has saved: steps, sizes, and the parameter tree. Needs no accelerator.

    --workdir=FOLDER
    --step=N          whose parameters to list; default: the newest
    """
    arguments = Arguments(argv, **TAKES["checkpoint"])
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import inspect

    print(inspect.describe(arguments.workdir, arguments.step))


def report(argv: list[str]) -> None:
    """Draws the curves of one or several runs.

    --workdir=A --workdir=B ...
    --out=FILE.png   default: report.png in the first work folder
    """
    arguments = Arguments(argv, **TAKES["report"])
    from bigjax import report as report_lib

    print(report_lib.draw(arguments.flags.workdir, arguments.flags.out))


def seqgan_report(argv: list[str]) -> None:
    """Compares runs of SeqGAN's oracle experiment, in a table and a picture.

    --workdir=A --workdir=B ...
    --out=FILE.png   default: seqgan-report.png in the first work folder
    """
    arguments = Arguments(argv, **TAKES["seqgan-report"])
    from bigjax.report import oracle

    print(oracle.draw(arguments.flags.workdir, arguments.flags.out))


def tokenizer(argv: list[str]) -> None:
    """Trains the tokenizer of a config on its sources, or shows the one it names.

    --config=FILE[:VARIANT] --config.KEY=VALUE
    --out=FOLDER     where to write it; a config takes it by data.tokenizer.path
    """
    arguments = Arguments(argv, **TAKES["tokenizer"])
    config, _ = arguments.config()
    config_lib.check_values(config)
    from bigjax import data
    from bigjax.train import init_from

    init_from.fill(config)
    built = data.build_tokenizer(config.data)
    print(f"{config.data.tokenizer.kind} tokenizer of {built.vocab_size:,} tokens")
    for text in ("Hello world", "def attention(query, key, value):"):
        ids = built.encode_batch([text])[0].tolist()
        print(f"{text!r} -> {ids} -> {[built.decode([i]) for i in ids]}")
    if arguments.flags.out:
        try:
            built.save(arguments.flags.out)
        except OSError as e:
            raise cannot_write(f"--out={arguments.flags.out}", e, "Name another folder") from e
        print(f"Wrote {arguments.flags.out}")


def embeddings(argv: list[str]) -> None:
    """Trains word vectors (skip-gram) on the data of a config, for its task.embeddings.

    --config=FILE[:VARIANT] --config.KEY=VALUE   the training headlines and articles, or sources
    --out=FILE   in word2vec's text format; vectors of model.d_model numbers
    --passes=3   over the text
    """
    arguments = Arguments(
        argv, lambda f: flags.DEFINE_integer("passes", 3, "", flag_values=f), **TAKES["embeddings"]
    )
    config, _ = arguments.config()
    config_lib.check_values(config)
    from bigjax.train import embeddings as embeddings_lib

    embeddings_lib.write(config, arguments.flags.out, arguments.flags.passes, print)


def plan(argv: list[str]) -> None:
    """Compiles a config for a TPU pod, without one: does it fit, how fast, what is communicated.
    For GPUs, with `pip install -e '.[cuda]'`, without seconds.

    --config=FILE[:VARIANT] --config.KEY=VALUE   needs `pip install -e '.[plan]'`
    --topology=CHIP:AxB     such as v5e:16x16 or v5p:8x8x8; --slices=2 of them; GPUs: h100:8, or
                            h100:4x8, four hosts of eight
    --mesh=AXIS=N,...       of config.mesh, such as data=1,fsdp=64,tensor=8
    --search                tries layouts, for --budget-minutes=20; given again, it goes on
    --calibrate=FILE        corrects seconds by measured runs: lines of --json with
                            "measured_seconds" added
    --json                  also prints the numbers as one line of JSON, last
    """
    from bigjax.plan import chips, command

    chips.before_jax()
    arguments = Arguments(argv, command.define_flags, **TAKES["plan"])
    config, _ = arguments.config()
    config_lib.check_values(config)
    command.run(arguments.flags, config)


def import_(argv: list[str]) -> None:
    """Makes a work folder from a model of Hugging Face transformers. Needs no accelerator.

    --from=FOLDER      with config.json and safetensors files
    --workdir=FOLDER   new: to evaluate, to generate from, or for another run's init_from
    --config.KEY=VALUE  of the new work folder's config, such as data.tokenizer.lowercase; not what
                        the model's folder decides: model, task, data.tokenizer.kind and .path
    """
    arguments = Arguments(argv, **TAKES["import"])
    source = arguments.flags["from"].value  # a Python keyword
    if not source:
        raise UserError("--from=FOLDER is missing: the model to import.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import exchange

    exchange.import_run(source, workdir, print, arguments.overrides)


def export(argv: list[str]) -> None:
    """Writes a saved step as a model of Hugging Face transformers. Needs no accelerator.

    --workdir=FOLDER
    --to=FOLDER       new
    --step=N          or best (by checkpoint.best); default: the newest
    --dtype=NAME      float32, bfloat16 or float16; default: as imported, else as trained
    """
    arguments = Arguments(argv, **TAKES["export"])
    f = arguments.flags
    if not f.to:
        raise UserError("--to=FOLDER is missing: where to write the model.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import exchange

    exchange.export_run(workdir, f.to, arguments.step, print, f.dtype or "")


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "generate": generate,
    "plan": plan,
    "configs": list_configs,
    "config": show_config,
    "checkpoint": checkpoint,
    "report": report,
    "seqgan-report": seqgan_report,
    "tokenizer": tokenizer,
    "headline": headline,
    "embeddings": embeddings,
    "import": import_,
    "export": export,
}
