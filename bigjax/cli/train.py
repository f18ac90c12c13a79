"""Trains a model, or resumes training.

Everything is written to the work folder; the same command resumes there.
"""

from bigjax.arguments import Arguments, Command
from bigjax.errors import UserError

COMMAND = Command(config=True, keys=("",))
DEFAULT_WORKDIR = "runs/gpt-docstrings"


def run(arguments: Arguments) -> None:
    if not arguments.flags.workdir:
        if arguments.flags.config:
            raise UserError("--workdir=FOLDER is missing: the folder to write the run to.")
        arguments.flags.workdir = [DEFAULT_WORKDIR]
    config, _ = arguments.config()
    from bigjax.train import run as run_lib

    run_lib.train(config, arguments.workdir)
