"""Writes headlines for an article, or one for each row of a table.

By beam search, or with --temperature as samples; the discriminator ranks them.
"""

import dataclasses

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.projects.seqgan.generation_options import Options

COMMAND = Command(
    flags=(
        Flag("article", ".txt: one article; .jsonl, .csv, .tsv, .parquet: rows", "", "FILE"),
        Flag("output", "of rows: .jsonl, .csv or .tsv", "", "FILE"),
        Flag("previous", "a headline published before; may be given several times", []),
        Flag("hot_words", "a word a line; default: the run's own", "", "FILE"),
        *(Flag(f.name, Options.HELP[f.name], f.default) for f in dataclasses.fields(Options)),
        STEP,
    ),
    keys=(*MODEL, "task", "data.columns", "data.truncate"),
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    from bigjax.projects.seqgan import writer
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    config = arguments.config_of_run()
    options, rows = writer.check(arguments.flags, config)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, None)
    writer.command(arguments.flags, options, rows, loaded, workdir_lib.existing(arguments.workdir))
