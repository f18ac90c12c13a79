"""Opens a reward model from the work folder of its run."""

from collections.abc import Callable

from bigjax import data
from bigjax.data import chat_template
from bigjax.errors import UserError
from bigjax.infer.scores import RewardModel
from bigjax.train import load
from bigjax.train import workdir as workdir_lib


def open_run(
    workdir: str,
    step: int | None = None,
    batch_size: int = 0,
    log: Callable[[str], None] = print,
    config=None,
) -> RewardModel:
    """The reward model of a saved step (None: the latest).

    batch_size: rows that are scored at a time; 0: train.batch_size of its run. config: that of the
    run with another mesh, if there is one. Raises UserError for a run of another task.
    """
    config = config or workdir_lib.read_config(workdir)
    if config.task.name != "reward":
        raise UserError(
            f"{workdir!r} was trained with task.name={config.task.name!r}; a reward model is a run "
            "of task.name='reward'."
        )
    size = batch_size or config.train.batch_size
    loaded = load.load(workdir, config, step, size)
    folder = workdir_lib.existing(workdir) / "tokenizer"
    template = chat_template.read(
        config.data.chat_template,
        data.load_tokenizer(folder, config.python_path),
        chat_template.DATE,
        config.task.chat_template,
    )
    variables = loaded.params, loaded.extras, loaded.frozen
    return RewardModel(
        loaded.task, loaded.mesh, variables, template, config.data.seq_len, size, log
    )
