"""Writes the predictions of a fine-tuned model for each row of a file, or for images.

The columns of the file have the names of the training data, or those of data.columns. Images are a
file, a folder, a pattern such as 'photos/*.jpg', a table of files, or what data.train may be.
"""

from bigjax import json_text
from bigjax.arguments import ROWS, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag(
            "input",
            ".tsv, .csv, .jsonl, .parquet, .conll or SQuAD's .json; images, a folder of them",
            value="FILE",
        ),
        Flag(
            "output",
            ".tsv, .csv or .jsonl: the rows with their predictions; default: they are printed",
            value="FILE",
        ),
        STEP,
    ),
    keys=(
        *ROWS,
        "data.columns",
        "data.seq_len",
        "data.packing",
        "data.truncate",
        "data.doc_stride",
        "data.crop",
        "data.keep_ratio",
        "data.max_pixels",
        "data.threads",
    ),
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    f = arguments.flags
    if not f.input:
        raise UserError("predict needs --input=FILE, and --output=FILE to write a file.")
    from bigjax import data, tasks
    from bigjax.data import tokenizers
    from bigjax.infer import predict as predict_lib
    from bigjax.parallel import hosts
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    if f.output:
        predict_lib.check_output(f.output, f.input)
    config = arguments.config_of_run()
    hosts.start(config, arguments.workdir)  # before the task, which starts jax
    task = tasks.build(config)
    if task.kind is None or task.load_input is None:
        such_as = "'classify'."
        if config.data.name == "images":
            such_as = "'image_classify': train one from this run with init_from."
        raise UserError(
            f"{arguments.workdir!r} was trained with task.name={config.task.name!r}; predict needs "
            f"a task on labelled data, such as task.name={such_as}"
        )
    tokenizer = None
    if tokenizers.section(config):  # not all data are text
        folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
        tokenizer = data.load_tokenizer(folder, config.python_path)
    rows, batches = task.load_input(f.input, print, tokenizer)
    if f.output:
        predict_lib.check_rows(f.output, rows)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, config.train.batch_size)
    outputs_of = predict_lib.make_outputs(loaded.task, loaded.mesh, labelled=False)
    outputs, _ = outputs_of(loaded.params, loaded.extras, loaded.frozen, batches)
    predictions = task.kind.predict(rows, batches.examples, outputs)
    if f.output:
        predict_lib.write(f.output, rows, predictions)
    else:
        print(predict_lib.as_text(rows, predictions))
    if n := sum("note" in p for p in predictions):
        what = f"{n:,} of {len(rows):,} {plural(len(rows), 'row')} {'has' if n == 1 else 'have'}"
        print(f"note: {what} no prediction; the column note says why.")
    if n := json_text.count_non_finite(predictions):
        print(
            f"note: {n:,} number(s) are not finite; they are null in .jsonl and empty in tables. "
            "Causes: a row whose context has no text (its score), or a model that diverged."
        )
    what = f"Wrote {f.output}: " if f.output else ""
    print(
        f"{what}{len(rows):,} {plural(len(rows), 'row')}, step {loaded.step} of {arguments.workdir}"
    )
