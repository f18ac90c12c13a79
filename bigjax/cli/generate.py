"""Generates text with a trained model: for prompts, or for each row of a file."""

import dataclasses

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag
from bigjax.errors import UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag("prompt", "the text to continue, or the source; may be repeated", []),
        Flag(
            "input",
            ".tsv, .csv, .jsonl or .parquet with a prompt or source in each row, instead of "
            "--prompt",
            value="FILE",
        ),
        Flag(
            "output",
            ".tsv, .csv or .jsonl: the rows of --input with their texts; the same command "
            "resumes after an interruption",
            value="FILE",
        ),
        Flag("column", "of --input with the prompts; default: data.columns.source, for GPT text"),
        Flag("batch", "rows of --input at a time", 32),
        Flag("number", "number of samples per prompt", 1),
        Flag(
            "max_tokens",
            "per text; by default fewer if model.max_len or data.target_len requires it",
            128,
        ),
        Flag(
            "temperature",
            "0 always takes the most likely token; default: 0 for an answer to a source, else 0.8",
            0.8,
        ),
        Flag("top_k", "only the k most likely tokens; 0 = all", 0),
        Flag("top_p", "only the most likely tokens that together have this probability", 0.95),
        Flag("stop", "a text that ends a sample; may be repeated", []),
        Flag("seed", "of the samples", 0),
        Flag("beam", "above 0: beam search for this number of texts, instead of samples", 0),
        Flag("n_best", "how many of them are printed or written; default: all, or 1 of a file", 0),
        Flag("length_penalty", "of a beam search: above 0 favours longer texts", 1.0),
        Flag("coverage_penalty", "of a beam search: favours texts that use the whole source", 0.0),
        STEP,
    ),
    keys=(*MODEL, "data.columns", "data.prefix", "data.seq_len", "data.truncate"),
    unused=SETTLED,
)
_OF_DRAWS = ("top_k", "top_p", "seed", "number")
_OF_SAMPLES = (*_OF_DRAWS, "temperature", "stop")
_OF_BEAMS = ("n_best", "length_penalty", "coverage_penalty")
_OF_FILES = ("output", "column", "batch")


def run(arguments: Arguments) -> None:
    from bigjax import data, modules
    from bigjax.infer import predict as predict_lib
    from bigjax.infer import sentinels
    from bigjax.train import load as load_lib
    from bigjax.train import workdir as workdir_lib

    f = arguments.flags
    check_flags(f)
    if f.output:
        predict_lib.check_output(f.output, f.input)
    config = arguments.config_of_run()
    family = modules.of(config, "model")
    if not hasattr(family, "decoder"):
        raise UserError(
            "Only decoders generate text, such as model.name='gpt' or 't5'; "
            f"{arguments.workdir} has model.name={config.model.name!r}."
        )
    if hasattr(family, "features"):
        raise UserError(
            f"{arguments.workdir} has model.name={config.model.name!r}, which reads recordings and "
            f"not text. Use bigjax transcribe --workdir={arguments.workdir} FILE."
        )
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    # The file is read before the checkpoint, so that it can be refused early.
    rows = _rows(f, config) if f.input else None
    if rows:
        predict_lib.check_rows(f.output, rows)
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    decoder, variables = load_lib.decoder_of(loaded, family, arguments.overrides)
    tokenizer = sentinels.named(tokenizer, decoder)
    if rows is None:
        _write(f, tokenizer, decoder, variables, config.data)
        return
    model = [loaded.fingerprint, arguments.overrides]
    _write_file(f, tokenizer, decoder, variables, rows, config, model)
    n, step = len(rows), f"step {loaded.step} of {arguments.workdir}"
    print(f"Wrote {f.output}: {n:,} {plural(n, 'row')}, {step}")


def check_flags(f) -> None:
    """Raises UserError for invalid flags, and for those without effect."""
    from bigjax import bounds
    from bigjax.infer.generate import Options

    for name, least in (("number", 1), ("batch", 1), ("beam", 0), ("n_best", 0)):
        if f[name].value < least:
            raise UserError(f"--{name} is {f[name].value}; it must be at least {least}.")
    if "" in f.stop:
        raise UserError("--stop is empty; give the text that ends a sample.")
    Options(f.max_tokens, f.temperature, f.top_k, f.top_p)  # raises UserError for invalid values
    bounds.check_seed(f.seed)
    if f.beam:
        search_of(f)
    for name in _OF_DRAWS:
        if not f.temperature and f[name].present:
            raise UserError(
                f"--{name} would change nothing: --temperature=0 takes the most likely "
                "token. Leave one of the two out."
            )
    for given, names, needs in (
        (f.beam, _OF_SAMPLES, "is only for samples, not for --beam"),
        (not f.beam, _OF_BEAMS, "is only for --beam"),
        (not f.input, _OF_FILES, "is only for --input"),
        (f.input, ("prompt", "number"), "is not for --input"),
    ):
        for name in names:
            if given and f[name].present:
                raise UserError(f"--{name} {needs}. Leave one of the two out.")
    if f.input and not f.output:
        raise UserError("--input needs --output=FILE, for the rows with their texts.")


def search_of(f):
    """The options of --beam. Raises UserError for invalid ones."""
    from bigjax.infer.batch import Search

    n_best = f.n_best or (1 if f.input else f.beam)
    return Search(f.beam, n_best, f.length_penalty, f.coverage_penalty)


def _rows(f, config) -> list[dict]:
    """The rows of --input as read_table gives them, with the prompt as `source`."""
    from bigjax.data.tables import read_table
    from bigjax.data.text_to_text import source_text
    from bigjax.data.values import ColumnError

    columns = config.data.get("columns", {})
    column = f.column or columns.get("source", "text")
    prefix = columns.get("prefix", "")
    used = [column, *([prefix] if prefix else [])]
    try:
        rows = read_table(f.input, used, {prefix: "optional"})
    except ColumnError as e:
        more = f", for prefixes --config.data.columns.prefix={prefix}" if prefix else ""
        raise UserError(f"{e} For prompts that is --column={column}{more}.") from None
    start = config.data.get("prefix", "")
    return [{**row, "source": source_text(start, row.get(prefix), row[column])} for row in rows]


def _options(f, tokenizer, decoder, data):
    """The options of the flags; _within limits the number of tokens. data: the config section.

    Raises UserError for flags that have no effect on this decoder.
    """
    from bigjax.infer.generate import Options

    length = f.max_tokens
    if not f["max_tokens"].present:
        length = min(length, data.get("target_len", length))
    greedy = not decoder.continues and not f["temperature"].present
    for name in _OF_DRAWS:
        if greedy and f[name].present:
            raise UserError(
                f"--{name} would change nothing: this model answers a source with the most likely "
                f"tokens. To sample, add --temperature={f.temperature}; else leave --{name} out."
            )
    temperature = 0.0 if greedy else f.temperature
    return Options(length, temperature, f.top_k, f.top_p, tokenizer.eos_id)


def _within(options, decoder, ids):
    """options with fewer new tokens if the longest of these prompts leaves room for fewer."""
    from bigjax.infer.generate import taken_by

    room = decoder.max_len - taken_by(decoder, ids)
    return dataclasses.replace(options, max_new_tokens=min(options.max_new_tokens, room))


def _ids(f, tokenizer, decoder, prompts, names: list[str], data) -> list[list[int]]:
    """The token ids of prompts. names: where each is from. data: the config section.

    Raises UserError for a sentinel that the tokenizer lacks, a source that is longer than those of
    training, unless data.truncate, and a prompt after which there is no room for a token, or for
    --max_tokens if it is given.
    """
    from bigjax.infer import sentinels, texts

    sentinels.check(tokenizer, prompts, names)
    ids = texts.prompt_ids(tokenizer, prompts, decoder)
    if not decoder.continues:
        ids = texts.fitting(ids, names, data.seq_len, data.get("truncate", False))
    _check_room(f, decoder, ids, names)
    return ids


def _check_room(f, decoder, ids, names: list[str]) -> None:
    asked = f.max_tokens if f["max_tokens"].present else 0
    most_new = decoder.max_len - decoder.continues  # a prompt has a token at least
    if asked > most_new:
        raise UserError(
            f"--max_tokens is {asked:,}; the model can generate at most {most_new:,} tokens "
            f"({decoder.limit}={decoder.max_len}). Lower it."
        )
    most = decoder.max_len - (asked or 1)
    over = [i for i, row in enumerate(ids) if len(row) > most and decoder.continues]
    if over:
        given = f" and --max_tokens={asked}" if asked else ", so that text can follow"
        raise UserError(
            f"{names[over[0]]}: the prompt is {len(ids[over[0]]):,} tokens long, special ones "
            f"included, and at most {most:,} are allowed with {decoder.limit}={decoder.max_len}"
            f"{given}; {len(over):,} of {len(ids):,} are too long. Shorten the prompt"
            f"{', or lower --max_tokens' if asked else ''}."
        )


def _write(f, tokenizer, decoder, variables, data) -> None:
    """Prints the texts of each --prompt. data: the config section."""
    from bigjax.infer import texts
    from bigjax.infer.generate import Generator

    generator = Generator(decoder, variables)
    prefix = data.get("prefix", "")
    prompts = [prefix + p for p in (f.prompt or [""])]
    names = [f"prompt {i + 1}" for i in range(len(prompts))]
    ids = _ids(f, tokenizer, decoder, prompts, names, data)
    options = _within(_options(f, tokenizer, decoder, data), decoder, ids)
    shown = prompts if decoder.continues else [""] * len(prompts)
    if f.beam:
        results = texts.search(generator, tokenizer, ids, options, search_of(f), names)
        for i, candidates in enumerate(results):
            for text, score in candidates:
                print(f"--- {i + 1} of {len(prompts)}, score {score:.3f}\n{shown[i]}{text}")
        return
    samples = [(i, number) for i in range(len(prompts)) for number in range(f.number)]
    ids, shown = ([of[i] for i, _ in samples] for of in (ids, shown))
    more = dict(seed=f.seed, stop=f.stop, samples=samples)
    if len(samples) == 1:  # print pieces as they are generated
        text = shown[0]  # printed with the first piece, since the request may be refused
        for _, piece in texts.stream(generator, tokenizer, ids, options, **more):
            print(text + piece, end="", flush=True)
            text = ""
        print(text)
        return
    for i, text in enumerate(texts.of_ids(generator, tokenizer, ids, options, **more)):
        print(f"--- {i + 1} of {len(samples)}\n{shown[i]}{text}")


def _write_file(f, tokenizer, decoder, variables, rows: list[dict], config, model: list) -> None:
    """Writes --output: the rows of --input with their texts.

    model: what identifies the model, as JSON.
    """
    from bigjax.infer import files, predict, texts
    from bigjax.infer.generate import Generator

    generator = Generator(decoder, variables)
    names = [row["where"] for row in rows]
    ids = _ids(f, tokenizer, decoder, [row["source"] for row in rows], names, config.data)
    options = _options(f, tokenizer, decoder, config.data)
    search = search_of(f) if f.beam else None

    def generate(indices: list[int]) -> list[files.Texts]:
        chosen = [ids[i] for i in indices]
        given = _within(options, decoder, chosen)
        if search:
            where = [names[i] for i in indices]
            return texts.search(generator, tokenizer, chosen, given, search, where)
        more = dict(seed=f.seed, stop=f.stop, samples=[(i, 0) for i in indices])
        return [[(text, 0.0)] for text in texts.of_ids(generator, tokenizer, chosen, given, **more)]

    settings = [model, dataclasses.asdict(options), search and dataclasses.asdict(search)]
    settings += [f.seed, list(f.stop)]
    results = files.generate_all(ids, generate, f.batch, f.output, settings)
    predictions = []
    cell = predict.escaped if f.output.endswith(".tsv") else str
    for candidates in results:
        best, score = candidates[0]
        prediction = {"generated": cell(best)} | ({"score": score} if search else {})
        if search and search.n_best > 1:
            prediction["n_best"] = [text for text, _ in candidates]
            prediction["n_best_scores"] = [score for _, score in candidates]
        predictions.append(prediction)
    predict.write(f.output, rows, predictions)
    files.forget(f.output)
