"""Freezes rated conversations into a snapshot to train on, or checks the hashes of one."""

from bigjax.arguments import Arguments, Command, Flag, Positional
from bigjax.errors import UserError
from bigjax.plural import plural

COMMAND = Command(
    flags=(
        Flag(
            "input",
            ".jsonl of rated conversations, or a folder of them; may be repeated",
            [],
            value="FILE",
        ),
        Flag("output", "the snapshot: a new folder", value="FOLDER"),
        Flag("min_rating", "from -1 to 1, to which the scale of each rating is mapped", -1.0),
        Flag("max_rating", "likewise; records without a rating are kept", 1.0),
        Flag("since", "a date or time in ISO 8601: only records from then on", ""),
        Flag("until", "only records before it", ""),
        Flag(
            "model",
            "only of this model: its name, a pattern of names, or the fingerprint of its "
            "checkpoint; may be repeated",
            [],
        ),
        Flag("require_consent", "only records with consent", False),
        Flag(
            "drop_pattern",
            "leaves out records with a text that this regex matches",
            "",
            value="REGEX",
        ),
        Flag("max_per_user", "at most this number of records of each user; 0 = all", 0),
        Flag("min_chars", "only answers of at least this number of characters", 0),
        Flag("seed", "of the order of rows, and of the choice for --max_per_user", 0),
        Flag("skip_bad", "leaves out damaged lines, and counts them", False),
    ),
    workdirs=0,
    positional=Positional("ACTION", "snapshot, or verify FOLDER"),
)
_FILTERS = (
    "min_rating",
    "max_rating",
    "since",
    "until",
    "model",
    "require_consent",
    "drop_pattern",
    "max_per_user",
    "min_chars",
    "seed",
)


def run(arguments: Arguments) -> None:
    action, *rest = [*arguments.positional, ""]
    if action == "snapshot" and rest == [""]:
        _snapshot(arguments.flags)
    elif action == "verify" and len(rest) == 2:
        _verify(arguments.flags, rest[0])
    else:
        raise UserError(
            "Write `bigjax feedback snapshot --input=FILE --output=FOLDER` or `bigjax feedback "
            f"verify FOLDER`; found the arguments {' '.join(arguments.positional) or 'none'}."
        )


def _snapshot(f) -> None:
    from bigjax.data import feedback, feedback_snapshot

    if not f.input or not f.output:
        raise UserError("A snapshot needs --input=FILE, once or more, and --output=FOLDER.")
    for path in (*f.input, f.output):
        if "://" in path:
            raise UserError(f"{path} is no local path. Copy the files to this machine first.")
    values = {name: f[name].value for name in _FILTERS}
    filters = feedback_snapshot.Filters(**{**values, "model": tuple(f.model)})
    sources = [feedback.read(path, f.skip_bad) for path in feedback.files_of(f.input)]
    files, manifest = feedback_snapshot.snapshot(sources, filters)
    is_new = feedback_snapshot.write(files, f.output)
    n = sum(len(source.records) for source in sources)
    print(f"read {n:,} {plural(n, 'record')} of {len(sources):,} {plural(len(sources), 'file')}")
    if bad := sum(source.n_bad for source in sources):
        print(f"skipped {bad:,} damaged {plural(bad, 'line')}")
    for name, count in manifest["removed"].items():
        if count:
            print(f"removed {count:,}: {name}")
    for name, one in manifest["outputs"].items():
        print(f"{name:<14} {one['rows']:,} {plural(one['rows'], 'row')}")
    print(f"Wrote {f.output}" if is_new else f"{f.output} is already there, with the same content")


def _verify(f, folder: str) -> None:
    from bigjax.data import feedback_snapshot

    given = next(
        (name for name in ("input", "output", "skip_bad", *_FILTERS) if f[name].present), None
    )
    if given:
        raise UserError(f"--{given} has no effect on verify. Remove it.")
    manifest = feedback_snapshot.verify(folder)
    rows = {name: one["rows"] for name, one in manifest["outputs"].items()}
    print(f"{folder}: all hashes are right; " + ", ".join(f"{k} {n:,}" for k, n in rows.items()))
