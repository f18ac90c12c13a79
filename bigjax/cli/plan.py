"""Compiles a config for a TPU pod, without one: does it fit, how fast, what is communicated.

Needs `pip install -e '.[plan]'`. For GPUs, with `pip install -e '.[cuda]'`, without seconds.
"""

from bigjax import config as config_lib
from bigjax.arguments import JSON, Arguments, Command, Flag

COMMAND = Command(
    flags=(
        Flag(
            "topology",
            "such as v5e:16x16 or v5p:8x8x8; GPUs: h100:8, or h100:4x8, four hosts of eight",
            "",
            "CHIP:AxB",
        ),
        Flag("slices", "how many of them", 1),
        Flag("mesh", "of config.mesh, such as data=1,fsdp=64,tensor=8", "", "AXIS=N,..."),
        Flag("search", "tries layouts; given again, it continues", False),
        Flag("budget-minutes", "of --search", 20.0),
        Flag(
            "calibrate",
            'corrects seconds by measured runs: lines of --json with "measured_seconds" added',
            "",
            "FILE",
        ),
        JSON,
    ),
    config=True,
    workdirs=0,
    keys=(
        *("model", "task", "data", "optim", "train", "mesh", "seed", "init_from"),
        "python_path",
    ),
)


def run(arguments: Arguments) -> None:
    from bigjax.plan import chips, command

    chips.before_jax()
    config, _ = arguments.config()
    config_lib.check_values(config)
    command.run(arguments.flags, config)
