"""Transcribes recordings of any length with a trained model of speech.

Recordings are files, folders with those below them, patterns such as 'calls/*.wav', or tables of
files. Long ones are read in windows (https://arxiv.org/abs/2212.04356, section 4.5).
"""

from collections.abc import Sequence
import dataclasses
import sys

from bigjax.arguments import MODEL, SETTLED, STEP, Arguments, Command, Flag, Positional
from bigjax.errors import RunError, UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag(
            "output",
            "for a file per recording and format; the same command resumes after an interruption. "
            "Default: lines with times are printed",
            value="FOLDER",
        ),
        Flag("format", "of --output: txt, srt, vtt, json, or several: srt,json", "txt"),
        Flag("redo", "also transcribes what has its files in --output already", False),
        Flag("batch", "recordings at a time", 8),
        Flag("language", "such as en; default: that of each recording's first window"),
        Flag("task", "transcribe, or translate into English", "transcribe"),
        Flag("timestamps", "the model writes times, where it has them", True),
        Flag("beam", "beams at temperature 0; 1 is greedy", 5),
        Flag("best_of", "samples at other temperatures, of which the most likely counts", 5),
        Flag("temperatures", "the next one where a text fails the limits", "0,0.2,0.4,0.6,0.8,1"),
        Flag("compression_ratio", "limit: more repetitive texts fail; inf for none", 2.4),
        Flag("logprob", "limit: less likely texts fail, by their mean per token; -inf: none", -1.0),
        Flag("no_speech", "above this probability, a text that --logprob fails is silence", 0.6),
        Flag("condition_on_previous_text", "the text so far is the prompt of a window", True),
        Flag("prompt_reset_temperature", "text of a higher temperature is not", 0.5),
        Flag("max_initial_timestamp", "seconds at which a window's text begins, at most", 1.0),
        Flag("seed", "of the samples", 0),
        STEP,
    ),
    keys=(*MODEL, "data.columns", "data.seq_len"),
    unused=SETTLED,
    positional=Positional("FILE", "recordings: files, folders, or patterns in quotes"),
)


def run(arguments: Arguments) -> None:
    from bigjax import data, modules
    from bigjax.infer import transcripts
    from bigjax.infer.windows import check_plain, is_whisper
    from bigjax.train import workdir as workdir_lib

    f = arguments.flags
    options, formats = options_of(f), formats_of(f)
    if not arguments.positional:
        raise UserError(
            "transcribe needs recordings: bigjax transcribe --workdir=FOLDER 'calls/*.wav'."
        )
    config = arguments.config_of_run()
    family = modules.of(config, "model")
    if not (hasattr(family, "decoder") and hasattr(family, "features")):
        raise UserError(
            "transcribe needs a model of speech, such as model.name='whisper'; "
            f"{arguments.workdir} has model.name={config.model.name!r}."
        )
    folder = workdir_lib.existing(arguments.workdir) / "tokenizer"
    tokenizer = data.load_tokenizer(folder, config.python_path)
    if not is_whisper(tokenizer):
        check_plain(options, tokenizer)
        if f.timestamps and f["timestamps"].present:
            raise UserError("--timestamps: this model has no tokens of times. Remove it.")
    elif options.language or not tokenizer.multilingual:
        tokenizer.start(options.language, options.task)  # raises UserError
        options = dataclasses.replace(options, language=options.language or "en")
    files, without = recordings_of(arguments.positional, config)
    for message in without:
        _note(f"note: not transcribed: {message}")
    output, left = None, files
    if f.output:
        output = transcripts.Folder(f.output, formats, files)
        left = [file for file in files if f.redo or not output.has(file)]
        if n := len(files) - len(left):
            _note(
                f"{n:,} of {len(files):,} recordings have their files in {f.output}: skipped "
                "(--redo transcribes them again)."
            )
    try:
        errors = _transcribe(arguments, config, family, tokenizer, options, left, output)
    except KeyboardInterrupt:
        if output:
            n = len(files) - len(left) + output.n_written
            resumes = "starts again, since it has --redo" if f.redo else "transcribes the others"
            _note(
                f"{n:,} of {len(files):,} recordings have {'new' if f.redo else 'their'} files in "
                f"{f.output}: the same command {resumes}."
            )
        raise
    kept = output.write_failures(errors) if output else ""
    if n := len(errors) + len(without):
        where = f"{kept} says why" if kept and not without else "the notes above say why"
        total = len(files) + len(without)
        raise RunError(
            f"{n:,} of {total:,} {plural(total, 'recording')} could not be transcribed; {where}."
        )


def options_of(f):
    """The Options of infer.transcribe. Raises UserError for invalid flags, and for those without
    effect."""
    from bigjax import bounds
    from bigjax.infer.transcribe import Options

    bounds.check_seed(f.seed)
    if f.batch < 1:
        raise UserError(f"--batch is {f.batch}; it must be at least 1.")
    for name in ("format", "redo"):
        if f[name].present and not f.output:
            raise UserError(f"--{name} is only for --output. Leave it out, or name a folder.")
    try:
        temperatures = tuple(float(x) for x in f.temperatures.split(","))
    except ValueError:
        raise UserError(
            f"--temperatures is {f.temperatures!r}; it must be numbers with commas: 0,0.4,0.8."
        ) from None
    own = {field.name for field in dataclasses.fields(Options)} - {"temperatures", "language"}
    given = {name: getattr(f, name) for name in own}
    return Options(language=f.language or "", temperatures=temperatures, **given)


def formats_of(f) -> list[str]:
    from bigjax.infer.transcripts import FORMATS

    formats = list(dict.fromkeys(x.strip() for x in f.format.split(",")))
    if unknown := [x for x in formats if x not in FORMATS]:
        raise UserError(
            f"--format is {f.format!r}, and {unknown[0]!r} is not a format. Allowed: "
            f"{', '.join(FORMATS)}, or several of them with commas."
        )
    return formats


def recordings_of(specs: Sequence[str], config) -> tuple[list[str], list[str]]:
    """(the paths that files, folders, patterns and tables name, each once; what is wrong with
    folders and patterns that name none). Paths may be of missing files. Raises UserError, also if
    no file is left."""
    import glob
    import os

    from bigjax.data import audio
    from bigjax.data.audio import sources
    from bigjax.data.file_list import NoFiles

    columns = config.data.columns if config.data.name == "audio" else audio.Columns()
    files: dict[str, str] = {}
    without: list[str] = []
    for spec in specs:
        paths = [spec]  # a missing one is named when it is read, and the others are transcribed
        if "://" in spec or glob.has_magic(spec) or os.path.exists(spec):
            try:
                paths = sources.input_paths(spec, "FILE", columns.audio, _note)
            except NoFiles as e:
                if len(specs) == 1:
                    raise
                paths = []
                without.append(str(e))
        for path in paths:
            files.setdefault(path if "://" in path else os.path.abspath(path), path)
    if not any("://" in path or os.path.exists(path) for path in files):
        first = next(iter(files.values()), None)
        if first is None or first in specs:
            raise UserError(
                f"{specs[0]!r}: no such file or folder (looked from {os.getcwd()!r}). Give "
                "recordings, folders, or a pattern such as 'calls/*.wav'."
            )
        raise UserError(
            f"None of the {len(files):,} files that {' '.join(specs)} names exists, such as "
            f"{first}. Paths in a table are relative to its folder."
        )
    return [*files.values()], without


def _note(text: str) -> None:
    """For people: standard output has the transcripts."""
    print(text, file=sys.stderr, flush=True)


def _transcribe(arguments, config, family, tokenizer, options, files, output) -> dict[str, str]:
    """Transcribes files; returns {file: what is wrong with it}. output: a Folder; None prints."""
    if not files:
        return {}
    from bigjax.data.audio.decode import read_blocks
    from bigjax.infer import transcripts
    from bigjax.infer.progress import Bar
    from bigjax.infer.transcribe import transcribe
    from bigjax.infer.windows import ModelWindows, is_whisper
    from bigjax.train import load as load_lib

    f = arguments.flags
    loaded = load_lib.load(arguments.workdir, config, arguments.step, batch_size=None)
    decoder, variables = load_lib.decoder_of(loaded, family, arguments.overrides)
    c, most = loaded.task.model_config, config.data.get("seq_len", config.model.max_len)
    model = ModelWindows(decoder, variables, c, tokenizer, options, most)
    read = lambda file: read_blocks(file, c.sample_rate)
    separator = "" if is_whisper(tokenizer) else " "
    errors: dict[str, str] = {}
    samples: dict[str, int] = {}  # of each recording, so far
    total = 0
    with Bar(len(files), 0, "transcrib", "recording", _note, sys.stderr) as bar:
        for recording, segments in transcribe(files, read, model, options, f.batch):
            file = recording.file
            total += recording.length - samples.get(file, 0)
            samples[file] = recording.length
            for segment in segments if output is None else ():
                print(f"{file}: {transcripts.line(segment)}", flush=True)
            if recording.error:
                errors[file] = recording.error
                _note(f"note: not transcribed: {recording.error}")
            elif recording.done:
                if recording.length < c.hop:
                    _note(f"note: {file}: it is shorter than a frame; it has no text.")
                elif recording.silent:
                    _note(f"note: {file}: all of its samples are 0; it has no text.")
                if output is not None:
                    length = recording.length / c.sample_rate
                    parts = file, recording.language, length, recording.segments, separator
                    output.write(transcripts.Transcript(*parts))
            hours = f"{total / c.sample_rate / 3600:,.2f} hours of audio"
            bar.add(int(recording.done or bool(recording.error)), hours)
    n = len(files) - len(errors)
    _note(
        f"{f'Wrote {f.output}: ' if output else ''}{n:,} {plural(n, 'recording')}, {hours}, "
        f"step {loaded.step} of {arguments.workdir}"
    )
    return errors
