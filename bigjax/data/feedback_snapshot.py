"""Freezes rated conversations into files to train on, with a manifest of hashes and filters.

The same records and filters give the same bytes, whatever the order of the input files.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
from typing import Any

import bigjax
from bigjax.data import feedback
from bigjax.data.feedback import FORMAT, Record, Source
from bigjax.errors import UserError, cannot_write

FILES = ("sft.jsonl", "ratings.jsonl", "pairs.jsonl")
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which records a snapshot has. Ratings are on the scale from -1 to 1."""

    require_consent: bool = False
    model: tuple[str, ...] = ()  # patterns of names such as chat-*, or fingerprints; () = all
    since: str = ""  # ISO 8601; this time included
    until: str = ""  # excluded
    min_rating: float = -1.0  # of records with a rating
    max_rating: float = 1.0
    min_chars: int = 0  # of the best answer
    drop_pattern: str = ""  # a regex; records with a text that it matches are left out
    max_per_user: int = 0  # 0 = all; records without a user are not limited
    seed: int = 0  # of the order, and of the choice for max_per_user

    def __post_init__(self) -> None:
        for name in ("min_rating", "max_rating"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--{name} is {getattr(self, name):g}; it must be from -1 to 1. The scale of "
                    "each record is mapped to that: 5 of 5 stars are 1, 4 are 0.5, 3 are 0."
                )
        if self.min_rating > self.max_rating:
            raise UserError(
                f"--min_rating={self.min_rating:g} is above --max_rating={self.max_rating:g}."
            )
        for name in ("min_chars", "max_per_user"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 0.")
        for name in ("since", "until"):
            if text := getattr(self, name):
                feedback.parse_time(text, f"--{name}")
        try:
            re.compile(self.drop_pattern)
        except re.error as e:
            raise UserError(f"--drop_pattern is {self.drop_pattern!r}, no regex ({e}).") from None

    def tests(self) -> dict[str, Callable[[Record], bool]]:
        """{filter: whether it keeps a record}, in their order, of those that are set."""
        drop = re.compile(self.drop_pattern)
        first, last = (
            feedback.parse_time(text or year, "the time")
            for text, year in ((self.since, "0001-01-01"), (self.until, "9999-12-31"))
        )
        tests: dict[str, Callable[[Record], bool]] = {
            "require_consent": lambda r: r.consent,
            "model": self._of_model,
            "since": lambda r: r.time >= first,
            "until": lambda r: r.time < last,
            "min_rating": lambda r: r.rating is None or r.rating >= self.min_rating,
            "max_rating": lambda r: r.rating is None or r.rating <= self.max_rating,
            "min_chars": lambda r: len(r.best) >= self.min_chars,
            "drop_pattern": lambda r: not any(map(drop.search, r.texts)),
        }
        defaults = Filters.__dataclass_fields__
        return {k: t for k, t in tests.items() if getattr(self, k) != defaults[k].default}

    def _of_model(self, record: Record) -> bool:
        return any(
            fnmatch.fnmatchcase(record.model["name"], pattern)
            or record.model.get("checkpoint") == pattern
            for pattern in self.model
        )


def snapshot(
    sources: Sequence[Source], filters: Filters
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """({name: content} of all files, the manifest). Raises UserError if nothing is left."""
    records, removed = _distinct(record for source in sources for record in source.records)
    for name, keeps in filters.tests().items():
        kept = [record for record in records if keeps(record)]
        removed[name] = len(records) - len(kept)
        records = kept
    records.sort(key=lambda r: r.order(filters.seed))
    if filters.max_per_user:
        kept = _limited(records, filters.max_per_user)
        removed["max_per_user"] = len(records) - len(kept)
        records = kept
    rows = {"sft.jsonl": _sft(records), "ratings.jsonl": _ratings(records)}
    rows["pairs.jsonl"] = _pairs(records)
    if not any(rows.values()):
        counts = ", ".join(f"{name} {n:,}" for name, n in removed.items() if n) or "none"
        raise UserError(
            f"No row is left for a snapshot: of {sum(len(s.records) for s in sources):,} records "
            f"were removed by {counts}; the other {len(records):,} have neither an answer that was "
            "rated above or below the middle nor a comparison. Relax the filters."
        )
    files = {name: _lines(rows[name]) for name in FILES}
    manifest = {
        "format": FORMAT,
        "bigjax": bigjax.__version__,
        "inputs": sorted(
            (
                {"name": s.name, "sha256": s.sha256, "rows": len(s.records), "bad": s.n_bad}
                for s in sources
            ),
            key=lambda one: (one["name"], one["sha256"]),
        ),
        "filters": {**dataclasses.asdict(filters), "model": sorted(filters.model)},
        "removed": removed,
        "records": len(records),
        "outputs": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "rows": content.count(b"\n")}
            for name, content in files.items()
        },
    }
    files[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    return files, manifest


def _distinct(records: Iterable[Record]) -> tuple[list[Record], dict[str, int]]:
    """(records without those of which there is an equal one, or a later one with the same id; how
    many of each kind were removed)."""
    equal: dict[str, Record] = {}
    n = 0
    for record in records:
        n += 1
        equal.setdefault(record.content, record)
    by_id: dict[str, list[Record]] = {}
    for record in equal.values():
        by_id.setdefault(record.id, []).append(record)
    newest = []
    for own in by_id.values():
        last = max(record.time for record in own)
        first, *others = [record for record in own if record.time == last]
        if others:
            raise UserError(
                f"{first.where} and {others[0].where} have the same id {first.id!r} and time, but "
                "differ. A later record with the same id replaces an earlier one; correct one."
            )
        newest.append(first)
    return newest, {"duplicates": n - len(equal), "replaced": len(equal) - len(newest)}


def _limited(records: Sequence[Record], most: int) -> list[Record]:
    counts: dict[str, int] = {}
    kept = []
    for record in records:
        n = counts.get(record.user or "", 0)
        if record.user and n >= most:
            continue
        counts[record.user or ""] = n + 1
        kept.append(record)
    return kept


def _answered(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _sft(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Conversations with an answer that was liked, or as it was corrected."""
    good = [
        (r, r.edited or r.answer)
        for r in records
        if r.edited or (r.rating is not None and r.rating > 0)
    ]
    return _unique({"messages": [*r.prompt, *_answered(text)]} for r, text in good if text)


def _ratings(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Answers with a label: liked or not; those in the middle have none."""
    return _unique(
        {"prompt": [*r.prompt], "completion": _answered(r.answer), "label": r.rating > 0}
        for r in records
        if r.rating and r.answer
    )


def _pairs(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Pairs of comparisons, of corrected answers and the original ones, and of liked and disliked
    answers to the same prompt."""
    pairs = []
    by_prompt: dict[str, dict[bool, dict[str, None]]] = {}
    prompts: dict[str, Record] = {}
    for r in records:
        if r.chosen and r.rejected:
            pairs.append((r, r.chosen, r.rejected))
        if r.edited and r.edited != r.answer:
            pairs.append((r, r.edited, r.answer))
        if r.rating and r.answer:
            key = json.dumps([*r.prompt], sort_keys=True)
            prompts.setdefault(key, r)
            by_prompt.setdefault(key, {True: {}, False: {}})[r.rating > 0][r.answer] = None
    for key, answers in by_prompt.items():
        both = {*answers[True]} & {*answers[False]}  # on which users disagree
        liked, disliked = ([a for a in answers[kind] if a not in both] for kind in (True, False))
        pairs += [(prompts[key], a, b) for a in liked for b in disliked]
    return _unique(
        {"prompt": [*r.prompt], "chosen": _answered(chosen), "rejected": _answered(rejected)}
        for r, chosen, rejected in pairs
        if chosen.strip() and rejected.strip()
    )


def _unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*{json.dumps(row, sort_keys=True): row for row in rows}.values()]


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# --- The folder ----------------------------------------------------------------------------------


def write(files: dict[str, bytes], folder: str) -> bool:
    """Writes a snapshot's files into a new folder, all or none; returns whether it was new.

    Raises UserError for a folder that exists with anything else, and if it cannot be written.
    """
    target = pathlib.Path(folder)
    if target.exists():
        own = {p.name: p.read_bytes() for p in target.iterdir()} if target.is_dir() else {}
        if own == files:
            return False
        raise UserError(
            f"--output={folder} exists and is not this snapshot. A snapshot is never overwritten: "
            "name a new folder, or remove that one."
        )
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        temporary.rename(target)
    except OSError as e:
        raise cannot_write(f"--output={folder}", e, "Name another folder") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def verify(folder: str) -> dict[str, Any]:
    """The manifest of a snapshot whose files are those that it names. Raises UserError."""
    path = pathlib.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        outputs = {name: (one["sha256"], one["rows"]) for name, one in manifest["outputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{folder} is not a snapshot: its {MANIFEST} cannot be read ({e}). Make it again."
        ) from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} has the format {manifest.get('format')!r}; this version of bigjax reads "
            f"{FORMAT}."
        )
    for name in sorted({*FILES} | {*outputs}):
        file = path.with_name(os.path.basename(name))
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
        want = outputs.get(name, ("not in the manifest", 0))[0]
        if digest != want:
            raise UserError(
                f"{file} is not that of the snapshot: its sha256 is {digest}, and {MANIFEST} has "
                f"{want}. Restore it, or make the snapshot again."
            )
    return manifest
