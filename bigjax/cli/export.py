"""Writes a saved step as a model of Hugging Face transformers. Needs no accelerator."""

from bigjax.arguments import STEP, Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(
        Flag("to", "a new folder", value="FOLDER"),
        Flag(
            "dtype", "float32, bfloat16 or float16; default: that of the import, else of training"
        ),
        Flag("adapter", "LoRA's factors alone, in the format of peft", default=False),
        STEP,
    ),
    keys=("peft.base",),
)


def run(arguments: Arguments) -> None:
    f = arguments.flags
    if not f.to:
        raise UserError("--to=FOLDER is missing: the folder to write the model to.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import export_model

    base = ""
    if arguments.overrides:  # of peft.base
        base = arguments.config_of_run().peft.get("base", "")
    if f.adapter:
        if f.dtype:
            raise UserError("--dtype has no effect with --adapter. Remove it.")
        export_model.export_adapter(workdir, f.to, arguments.step, print, base)
        return
    export_model.export_run(workdir, f.to, arguments.step, print, f.dtype or "", base=base)
