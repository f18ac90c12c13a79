"""Creates a work folder from a model of Hugging Face transformers. Needs no accelerator.

The work folder must be new. Evaluate it, generate from it, or start another run from it with
init_from. The model's folder determines model, task and data.tokenizer. Set data.tokenizer.kind and
data.tokenizer.path for a folder without a tokenizer that bigjax supports. The folder may also be a
LoRA adapter of peft: set peft.base to the model that it was trained on.
"""

from bigjax.arguments import Arguments, Command, Flag
from bigjax.errors import UserError

COMMAND = Command(
    flags=(Flag("from", "with config.json and safetensors files", value="FOLDER"),),
    keys=(
        *("seed", "data", "evals", "mesh", "hosts", "train.batch_size"),
        *("model.name", "python_path"),  # of a family of your own
        "peft.base",
    ),
)


def run(arguments: Arguments) -> None:
    source = arguments.flags["from"].value  # `from` is a Python keyword
    if not source:
        raise UserError("--from=FOLDER is missing: the model to import.")
    workdir = arguments.workdir
    import jax

    jax.config.update("jax_platforms", "cpu")
    from bigjax.interop import adapters
    from bigjax.train import import_adapter, import_model

    if adapters.is_adapter(source):
        import_adapter.import_run(source, workdir, print, arguments.overrides)
    else:
        import_model.import_run(source, workdir, print, arguments.overrides)
