"""Writes a saved step as a model of Hugging Face transformers. Needs no accelerator."""

from bigjax.arguments import STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("to", "a new folder", value="FOLDER"),
        Flag(
            "dtype", "float32, bfloat16 or float16; default: that of the import, else of training"
        ),
        STEP,
    ),
)


def run(arguments: Arguments) -> None:
    f = arguments.flags
    if not f.to:
        raise UserError("--to=FOLDER is missing: the folder to write the model to.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import export_model

    export_model.export_run(workdir, f.to, arguments.step, print, f.dtype or "")
