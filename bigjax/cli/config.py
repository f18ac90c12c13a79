"""Prints every key of a config and marks the overridden ones.

The config is that of a file (--config) or of a run (--workdir).
"""

import sys

from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command
from bigjax.errors import UserError

COMMAND = Command(config=True, keys=("",))


def run(arguments: Arguments) -> None:
    if arguments.flags.workdir:
        if arguments.flags.config:
            raise UserError(
                "Both --config (of a file) and --workdir (of a run) are set. Leave one out."
            )
        from bigjax.train import workdir as workdir_lib

        config, overridden = arguments.config(workdir_lib.read_config(arguments.workdir))
        config_lib.check_numbers(config, overridden.__contains__)
    else:
        config, overridden = arguments.config()
        config_lib.check_values(config)
    print(config_lib.describe(config, overridden, color=sys.stdout.isatty()))
