"""Writes headlines for an article, or one headline for each row of a table.

They come from beam search, or with --temperature from sampling; the discriminator ranks them.
"""

import dataclasses

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.projects.seqgan.generation_options import GenerationOptions

COMMAND = Command(
    flags=(
        Flag("article", ".txt: one article; .jsonl, .csv, .tsv, .parquet: rows", "", "FILE"),
        Flag("output", "for rows: .jsonl, .csv or .tsv", "", "FILE"),
        Flag("previous", "an earlier headline; may be repeated", []),
        Flag("hot_words", "one word per line; default: those of the run", "", "FILE"),
        *(
            Flag(f.name, GenerationOptions.HELP[f.name], f.default)
            for f in dataclasses.fields(GenerationOptions)
        ),
        STEP,
    ),
    keys=(*MODEL, "task", "data.columns", "data.truncate"),
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    from bigjax.projects.seqgan import generate_headlines
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    config = arguments.config_of_run()
    options, rows = generate_headlines.check(arguments.flags, config)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, None)
    folder = workdir_lib.existing(arguments.workdir)
    generate_headlines.command(arguments.flags, options, rows, loaded, folder)
