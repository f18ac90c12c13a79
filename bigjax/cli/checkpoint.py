"""Shows the saved steps of a run, their sizes, and the parameter tree. Needs no accelerator."""

from bigjax.arguments import STEP, Arguments, Command

COMMAND = Command(flags=(STEP,))


def run(arguments: Arguments) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import inspect

    print(inspect.describe(arguments.workdir, arguments.step))
