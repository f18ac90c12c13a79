"""Makes a work folder from a model of Hugging Face transformers. Needs no accelerator.

The work folder must be new: it is to be evaluated, to generate from, or for another run's
init_from. What the model's folder decides is not for flags: model, task, data.tokenizer.kind and
.path.
"""

from bigjax.arguments import Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(Flag("from", "with config.json and safetensors files", value="FOLDER"),),
    keys=("seed", "data", "evals", "mesh", "hosts", "train.batch_size"),
)


def run(arguments: Arguments) -> None:
    source = arguments.flags["from"].value  # a Python keyword
    if not source:
        raise UserError("--from=FOLDER is missing: the model to import.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.train import import_model

    import_model.import_run(source, workdir, print, arguments.overrides)
