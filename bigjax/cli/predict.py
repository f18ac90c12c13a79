"""Writes the predictions of a fine-tuned model for each row of a file.

The columns of the file have the names that they had in training, or those of data.columns.
"""

from bigjax import json_text
from bigjax.arguments import ROWS, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("input", ".tsv, .csv, .jsonl (.conll to tag, .json of SQuAD to answer)", value="FILE"),
        Flag("output", ".tsv, .csv or .jsonl: the rows with their predictions", value="FILE"),
        STEP,
    ),
    keys=(
        *ROWS,
        "data.columns",
        "data.seq_len",
        "data.packing",
        "data.truncate",
        "data.doc_stride",
    ),
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    f = arguments.flags
    if not f.input or not f.output:
        raise UserError("predict needs --input=FILE and --output=FILE.")
    from bigjax import data
    from bigjax.infer import predict as predict_lib
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    predict_lib.check_output(f.output, f.input)
    config = arguments.config_of_run()
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
        loaded.task,
        loaded.mesh,
        loaded.params,
        loaded.extras,
        loaded.frozen,
        split,
        labelled=False,
    )
    predictions = predict_lib.predictions(config, rows, examples, outputs)
    predict_lib.write(f.output, rows, predictions)
    if n := json_text.count_non_finite(predictions):
        print(
            f"note: {n:,} number(s) are not finite, and are null in .jsonl, empty in tables: the "
            "score of a row whose context has no text, or what a model gives that has diverged."
        )
    print(f"Wrote {f.output}: {len(rows):,} rows, step {loaded.step} of {arguments.workdir}")
