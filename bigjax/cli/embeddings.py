"""Trains word vectors (skip-gram) on the text of a config."""

from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command, Flag

COMMAND = Command(
    flags=(
        Flag("out", "in word2vec's text format, model.d_model numbers per word", value="FILE"),
        Flag("passes", "number of passes over the text", 3),
    ),
    config=True,
    workdirs=0,
    keys=("data", "model", "task", "seed"),
)


def run(arguments: Arguments) -> None:
    config, _ = arguments.config()
    config_lib.check_values(config)
    from bigjax.train import embeddings

    embeddings.write(config, arguments.flags.out, arguments.flags.passes, print)
