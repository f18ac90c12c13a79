"""Prints a config with every key; overridden ones stand out.

Of a file (--config), or a run's own (--workdir).
"""

import sys

from bigjax import config as config_lib
from bigjax.arguments import Arguments, Command
from bigjax.errors import UserError

COMMAND = Command(config=True, keys=("",))


def run(arguments: Arguments) -> None:
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
