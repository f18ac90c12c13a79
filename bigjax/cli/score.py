"""Adds the log-probabilities of a reference to preferences: task.reference='data' trains on them.

They are those of the run's model. The prompts and answers are encoded with the run's tokenizer, and
with its chat template, system prompt and data.seq_len: train with the same. Rated answers also get
the column `mismatched`, an answer to another prompt, with which KTO estimates the KL divergence.
"""

from bigjax.arguments import ROWS, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag("input", ".jsonl or .parquet: pairs of answers, or rated answers", value="FILE"),
        Flag("output", ".jsonl: the rows with the new columns", value="FILE"),
        STEP,
    ),
    keys=(
        *(key for key in ROWS if key != "task"),
        *("data.columns", "data.system", "data.chat_template", "data.seq_len", "data.truncate"),
        "seed",
    ),
    unused=SETTLED,
)
_OF_DATA = ("system", "chat_template", "tokenizer", "seq_len", "truncate", "columns", "cache_dir")


def run(arguments: Arguments) -> None:
    f = arguments.flags
    if not (f.input and f.output):
        raise UserError("score needs --input=FILE and --output=FILE.")
    if not f.output.endswith(".jsonl"):
        raise UserError(f"--output={f.output}: the name has to end in .jsonl.")
    import jax

    from bigjax import data
    from bigjax.data import chat_template, conversation_rows
    from bigjax.infer import files, predict, reference
    from bigjax.parallel import hosts, sharding
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    predict.check_output(f.output, f.input)
    config = _config(arguments)
    first = conversation_rows.records(f.input, "preferences")[0]["row"]
    form = reference.form_of(first, config.data.columns)
    with config.unlocked():
        config.task.loss = "kto" if form == "ratings" else "sigmoid"
    rows = reference.rows_of(f.input, config.data, form, config.seed)
    hosts.start(config, arguments.workdir)  # before the task, which starts jax
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    template = chat_template.read(
        config.data.chat_template, tokenizer, chat_template.DATE, config.task.chat_template
    )
    size = config.train.batch_size
    loaded = load_lib.load(arguments.workdir, config, arguments.step, size)
    of_batch = jax.jit(loaded.task.outputs, out_shardings=sharding.replicated(loaded.mesh))
    columns = reference.log_probs(
        *(rows, config.data, form, template),
        lambda batch: of_batch(loaded.params, loaded.extras, loaded.frozen, batch),
        loaded.mesh,
        size,
        f.output,
        [loaded.fingerprint, template.fingerprint, config.data.seq_len],
    )
    predict.write(f.output, rows, columns)
    files.forget(f.output)
    if n := sum(not new for new in columns):
        print(f"note: {n:,} of {len(rows):,} {plural(len(rows), 'row')} left out have no number.")
    print(
        f"Wrote {f.output}: {len(rows):,} {plural(len(rows), 'row')}, step {loaded.step} of "
        f"{arguments.workdir}"
    )


def _config(arguments: Arguments):
    """The config of the run, with preferences for its data and their task."""
    from bigjax import config as config_lib
    from bigjax import modules
    from bigjax.data.chat_template import template_text
    from bigjax.train import workdir as workdir_lib

    base = workdir_lib.read_config(arguments.workdir)
    if not hasattr(modules.of(base, "model"), "decoder") or base.task.name == "reward":
        raise UserError(
            f"{arguments.workdir} has model.name={base.model.name!r} and task.name="
            f"{base.task.name!r}; score needs a run whose model writes answers, such as one of "
            "task.name='sft'."
        )
    is_own = base.data.name == "preferences"
    kept = {
        key: base.data[key] for key in _OF_DATA if key in base.data and (is_own or key != "columns")
    }
    name, text = base.data.get("chat_template", ""), base.task.get("chat_template", "")
    with base.unlocked():
        base.data = {"name": "preferences", **kept}
        base.task = {"name": "preference", "reference": "data", "chat_template": text}
        base.evals = {}
    config, _ = arguments.config(base)
    config_lib.check_numbers(config, arguments.uses)
    if config.data.chat_template != name:
        with config.unlocked():
            config.task.chat_template = template_text(config.data.chat_template)
    return config
