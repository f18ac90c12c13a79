"""Runs all evaluations of a run's config on a saved step.

`bigjax evaluate` runs tasks of lm-evaluation-harness instead.
"""

from bigjax import json_text
from bigjax.arguments import JSON, ROWS, SETTLED, STEP, Arguments, Command

COMMAND = Command(flags=(STEP, JSON), keys=(*ROWS, "data", "seed", "evals"), unused=SETTLED)


def run(arguments: Arguments) -> None:
    from bigjax import data, evals
    from bigjax.data import tokenizers
    from bigjax.train import load as load_lib
    from bigjax.train import stages
    from bigjax.train import workdir as workdir_lib

    config = arguments.config_of_run()
    loaded = load_lib.load(arguments.workdir, config, arguments.step, config.train.batch_size)
    run_folder = workdir_lib.existing(arguments.workdir)
    tokenizer = None
    if tokenizers.section(config):  # not all data are text
        tokenizer = data.load_tokenizer(run_folder / "tokenizer", config.python_path)
    splits = {e[k] for e in config.evals.values() for k in e if k.endswith("split")}
    corpus = stages.load_data(loaded.task, print, tokenizer, splits)
    context = evals.Context(
        config,
        loaded.task,
        corpus,
        loaded.mesh,
        print,
        run_folder,
        loaded.frozen,
        report=print,
        unwritten=[],
    )
    numbers = {}
    for name, evaluator in stages.build_evaluators(context).items():
        metrics = evaluator(loaded.params, loaded.extras, loaded.step)
        numbers.update({f"eval/{name}/{k}": v for k, v in metrics.items()})
    for key, value in numbers.items():
        print(f"{key:<32} {value:.6f}")
    for line in context.unwritten:
        print(line)
    if arguments.flags.json:
        print(json_text.dumps({"step": loaded.step, **numbers}))
