"""The stages of a command on a model. Training runs them in this order.

| stage | function | commands |
| --- | --- | --- |
| check the config | `check` | train, plan; others open a config that was checked |
| join the other hosts | `parallel.hosts.start` | all but plan |
| mesh | `parallel.mesh.start`; of a pod `.checked` | all |
| resolve the config | `resolve` | train, plan (before the mesh, since it tries several) |
| task | `tasks.build` | all |
| program | `program.make` | train, plan |
| data | `load_data` | train, eval (after the saved state) |
| frozen parts | `frozen.load`; their shapes `frozen.shapes` | all; plan their shapes |
| evaluators | `build_evaluators` | train, eval |
| first state | `first_state.make`; of a saved step `load.load` | train; all others but plan |
| loop | `loop.run` | train |

`run.train`, `load.load` with the command that called it, and `plan.compile.plans` run them.
"""

from collections.abc import Callable, Collection

from bigjax import cloud, data, evals, modules, tasks
from bigjax import config as config_lib
from bigjax.parallel import hosts
from bigjax.train import init_from


def check(config, workdir: str = "") -> None:
    """Raises UserError for invalid values, and if workdir is a bucket that cannot be written."""
    config_lib.check_values(config)
    cloud.check_writable(workdir)


def resolve(config, workdir: str = "", read_data: bool = True):
    """(config, source): the config with every value that init_from and the data decide, and what
    init_from names if it was opened to read them. read_data=False: by assumptions, for a plan."""
    config = config.copy_and_resolve_references()
    source = init_from.fill(config, workdir)
    modules.fill(config)
    (tasks.resolve if read_data else tasks.assume)(config)
    return config.lock(), source


def load_data(
    task: tasks.Task,
    log: Callable[[str], None],
    tokenizer=None,
    splits: Collection[str] | None = None,
) -> data.Data:
    """The data of Task.load_data. Raises UserError if those of other hosts differ, or if it returns
    something else."""
    given = {} if splits is None else {"splits": splits}
    corpus = task.load_data(log, tokenizer, **given)
    tasks.check_data(corpus)
    hosts.check_equal(
        {"the data's fingerprint": corpus.fingerprint},
        "Give all hosts the same files, and the same installed packages.",
    )
    return corpus


def build_evaluators(context: evals.Context) -> dict[str, evals.Evaluator]:
    """{name: evaluator} of config.evals. Raises UserError for settings of one that are invalid."""
    return {name: evals.build(name, context) for name in context.config.evals}
