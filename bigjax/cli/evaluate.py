"""Evaluates a decoder on tasks of lm-evaluation-harness: choices, generation, perplexity.

`bigjax eval` runs the evaluations of the run's own config instead.
"""

import sys
from typing import Any

from bigjax import json_text
from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError, cannot_write

COMMAND = Command(
    flags=(
        Flag(
            "tasks",
            "a task of lm-evaluation-harness in .json or .yaml, of local files; may be repeated",
            [],
            value="FILE",
        ),
        Flag("limit", "only the first N rows of each task; 0 = all", 0),
        Flag("num_fewshot", "examples in each context; -1 = as each task says", -1),
        Flag("batch_size", "rows at a time", 16),
        Flag("chat", "contexts and answers are turns of the run's chat template", False),
        Flag("output", ".json: the results", value="FILE"),
        Flag("samples", ".jsonl: each document with its requests and responses", value="FILE"),
        STEP,
    ),
    keys=MODEL,
    unused=SETTLED,
)


def run(arguments: Arguments) -> None:
    from bigjax import data, modules
    from bigjax.evals.harness import run as harness
    from bigjax.evals.harness import task_file
    from bigjax.infer.generate import Generator
    from bigjax.infer.likelihood import Scorer
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    f = arguments.flags
    _check_flags(f)
    config = arguments.config_of_run()
    family = modules.of(config, "model")
    if not hasattr(family, "decoder"):
        raise UserError(
            "Only decoders are evaluated on such tasks, such as model.name='gpt'; "
            f"{arguments.workdir} has model.name={config.model.name!r}. Use bigjax eval."
        )
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    template = _template(config, tokenizer) if f.chat else None
    # All is read and checked before the model is loaded.
    tasks = task_file.read_all(f.tasks)
    for task in tasks:
        if template is not None and task.output_type == "loglikelihood_rolling":
            raise UserError(
                f"{task.file}: 'loglikelihood_rolling' has no context, so --chat has no effect on "
                "it. Evaluate it by itself, without --chat."
            )
    log = lambda line: print(line, file=sys.stderr)
    few = None if f.num_fewshot < 0 else f.num_fewshot
    prepared = [harness.prepare(task, f.limit or None, few, log) for task in tasks]
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    generator = Generator(*load_lib.decoder_of(loaded, family, arguments.overrides))
    scorer = Scorer(generator, loaded.mesh, f.batch_size)
    system = config.data.get("system", "")
    model = harness.Model(generator, scorer, tokenizer, f.batch_size, template, system)
    outcomes = [harness.run(one, model, log) for one in prepared]
    report = harness.report(prepared, outcomes)
    report["config"] = {
        "model": "bigjax",
        "model_args": f"workdir={arguments.workdir},step={loaded.step}",
        "model_fingerprint": loaded.fingerprint,
        "batch_size": f.batch_size,
        "limit": f.limit or None,
        "apply_chat_template": f.chat,
    }
    _write(f, report, outcomes)
    print(f"{arguments.workdir}, step {loaded.step}")
    print(harness.table(prepared, outcomes))


def _check_flags(f) -> None:
    """Raises UserError for invalid flags, and for files that could not be written."""
    from bigjax.infer.predict import check_output

    if not f.tasks:
        raise UserError(
            "Give --tasks=FILE, a task of lm-evaluation-harness in .json or .yaml; the page "
            "docs/evaluate.md has an example. bigjax eval runs the run's own evaluations."
        )
    for name, least in (("limit", 0), ("num_fewshot", -1), ("batch_size", 1)):
        if f[name].value < least:
            raise UserError(f"--{name} is {f[name].value}; it must be at least {least}.")
    for path, ending in ((f.output, ".json"), (f.samples, ".jsonl")):
        if path:
            check_output(path, formats=(ending,), what="results file")


def _template(config, tokenizer) -> Any:
    """The chat template of the run."""
    from bigjax.data import chat_template

    name, text = config.data.get("chat_template", ""), config.task.get("chat_template", "")
    try:
        return chat_template.read(name, tokenizer, text=text)
    except UserError as e:
        raise UserError(f"{e} Or leave --chat out.") from None


def _write(f, report: dict, outcomes) -> None:
    """Writes --output and --samples, each at once."""
    from etils import epath

    from bigjax import paths

    files = {f.output: json_text.dumps(report, indent=2, ensure_ascii=False) + "\n"}
    lines = (json_text.dumps(s, ensure_ascii=False) for o in outcomes for s in o.samples)
    files[f.samples] = "".join(f"{line}\n" for line in lines)
    for path, text in files.items():
        if path:
            try:
                paths.write_atomically(epath.Path(path), text.encode("utf-8", "replace"))
            except OSError as e:
                raise cannot_write(repr(path), e, "Name another file") from e
