"""Compiles a config for a TPU pod, without one: whether it fits, how fast it is, what is sent.

Needs `pip install -e '.[plan]'`. For GPUs install '.[cuda]'; their plans have no seconds.
"""

from bigjax.arguments import JSON, Arguments, Command, Flag

COMMAND = Command(
    flags=(
        Flag(
            "topology",
            "pod, such as v5e:16x16 or v5p:8x8x8; GPUs: h100:8, or h100:4x8, four hosts of eight",
            "",
            "CHIP:AxB",
        ),
        Flag("slices", "number of such pods, joined by a network", 1),
        Flag("mesh", "sets config.mesh, such as data=1,fsdp=64,tensor=8", "", "AXIS=N,..."),
        Flag("search", "tries layouts; the same command again continues", False),
        Flag("budget-minutes", "time limit of --search", 20.0),
        Flag(
            "calibrate",
            'measured runs that correct seconds: lines of --json with "measured_seconds" added',
            "",
            "FILE",
        ),
        Flag("html", "also writes the plan as one page with pictures", "", "FILE"),
        JSON,
    ),
    config=True,
    workdirs=0,
    keys=(
        *("model", "task", "data", "optim", "train", "mesh", "seed", "init_from"),
        *("peft", "python_path"),
    ),
)


def run(arguments: Arguments) -> None:
    from bigjax.plan import chips

    chips.before_jax()
    from bigjax.plan import command
    from bigjax.train import stages

    config, _ = arguments.config()
    stages.check(config)
    command.run(arguments.flags, config)
