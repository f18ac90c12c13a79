"""Rows for headline generators: articles, their headlines, and what readers did with them."""

import ast
import bisect
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import datetime
import itertools
import json
import math
from typing import Any
import warnings

import numpy as np

from bigjax.data import docstrings
from bigjax.data.files import cache_folder, write_cached
from bigjax.data.store import SPLITS, check_fractions, split_of
from bigjax.data.tables import read_table
from bigjax.data.tokenizers.base import hash_of
from bigjax.errors import UserError

DOCSTRINGS = "docstrings:headline"
_MIN_BODY_CHARS = 40  # a shorter body is too little for a headline
_LOOK_BACK = 64  # how many of a tag's latest headlines are candidates for the history
_USES_FORMAT = 1  # raise it when the same packages would give other counts


def read_headlines(
    spec: str, data: Any, *, with_headlines: bool = True, with_clicks: bool = True
) -> list[dict[str, Any]]:
    """The rows of one of `data.train`, `data.valid`, `data.test`, or of articles without headlines.

    A row has, whatever `data.columns` calls them in the file: headline and article, texts ("" for
    an article where data.columns.article is "": a model of titles alone); clicks and impressions,
    floats, or None where they are not known; published, a float that grows with time, or None;
    tags, a list of texts; "where", for messages; "row", the complete record (`read_table`).

    published may be numbers (seconds, a year, a week) or ISO 8601 dates, but not both; a date
    without a zone is UTC.

    "docstrings:headline", part of every installation: the article is a docstring without its
    first line, the headline that line, the tag its library. clicks are how often its name (the
    last part of the dotted one) is read, as a variable or an attribute, in the files that import
    its package or belong to it; impressions are the number of those files. So clicks over
    impressions is the mean number of uses in a file that could use it. Another object with the same
    short name counts too. The first call takes about 20 s, and the counts
    are kept in data.cache_dir; without `with_clicks` nothing is counted.

    Args:
      with_headlines: False for articles alone: headline is "" where there is none.
      with_clicks: False: a column of clicks or impressions may be missing from the file.

    Raises UserError, with file and line, for a column that is missing, an empty headline, article
    or published, clicks or impressions that are not numbers of at least 0, and as `read_table`.
    """
    if spec.startswith("docstrings:"):
        return _docstring_rows(spec, data, with_clicks)
    columns = data.columns
    needed = {"headline": with_headlines, "article": not with_headlines}
    for name in (name for name in needed if needed[name] and not columns[name]):
        raise UserError(
            f"data.columns.{name} is empty, and rows need it. Set it to the name (or, "
            "without a header, the number from 0) of that column."
        )
    names = {
        name: columns[name]
        for name in ("headline", "article", "clicks", "impressions", "published", "tags")
        if columns[name]
    }
    texts = [name for name in ("headline", "article", "published") if name in names]
    required = [name for name in texts if with_headlines or name == "article"]
    kinds = (
        {columns.published: "label", columns.tags: "names"}
        if with_headlines
        else {columns.tags: "names"}
    )
    table = read_table(
        spec,
        [names[name] for name in required],
        kinds,
        [names[name] for name in names if name not in required],
    )
    if with_headlines:
        optional = ("clicks", "impressions", "tags") if with_clicks else ("tags",)
        _check_columns({name: names[name] for name in optional if name in names}, table, spec)
    return [_row({name: row[column] for name, column in names.items()}, row) for row in table]


def read_parts(
    data: Any, with_clicks: bool = True, log: Callable[[str], None] = print
) -> dict[str, list[dict[str, Any]]]:
    """The rows of 'train', 'valid' and 'test', as `read_headlines` gives them, and each its "time".

    An empty `data.valid` is the `data.valid_fraction` of the training rows, chosen by a hash of
    the article (of the headline, where there are no articles), so that rows of one article are
    in one split; `data.test` likewise. If they have data of their own, training rows with a
    headline and article that are also in these are left out, and so are valid ones that are in
    test; `log` gets their number. (A pre-trained model has read docstrings by another split.)

    "time" orders rows: published, or the number of the row if it is not known; then rows of
    another file come after all training rows.
    """
    check_fractions(data.valid_fraction, data.test_fraction)
    if not data.train:
        raise UserError(
            "data.train is empty. Set it to a file with headlines and articles, such "
            f'as "train.jsonl", or to "{DOCSTRINGS}".'
        )
    own = {part: data[part] for part in ("valid", "test") if data[part] not in ("", data.train)}
    parts = {
        part: _timed(read_headlines(spec, data, with_clicks=with_clicks), math.inf)
        for part, spec in own.items()
    }
    parts |= {part: [] for part in SPLITS if part not in own}
    fractions = [0.0 if part in own else data[f"{part}_fraction"] for part in ("valid", "test")]
    for row in _timed(read_headlines(data.train, data, with_clicks=with_clicks)):
        parts[split_of(row["article"] or row["headline"], *fractions)].append(row)
    seen: set[tuple[str, str]] = set()
    for part in ("test", "valid", "train"):
        kept = [row for row in parts[part] if _pair(row) not in seen]
        if len(kept) < len(parts[part]):
            log(
                f"data: {part}: {len(parts[part]) - len(kept):,} of {len(parts[part]):,} rows are "
                "also in another split that is held out, and are left out"
            )
        parts[part] = kept
        seen |= {_pair(row) for row in kept}
    return {part: parts[part] for part in SPLITS}


class History:
    """The training headlines by time, to find those that came before another."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """rows: of the training split alone; only their headlines are returned."""
        rows = sorted(rows, key=lambda row: row["time"])
        self._times = [row["time"] for row in rows]
        self._headlines = [row["headline"] for row in rows]
        self._of_tag: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            for tag in set(row["tags"]):
                self._of_tag.setdefault(tag, []).append(i)

    def before(self, row: Mapping[str, Any], n: int) -> list[str]:
        """Up to `n` different headlines strictly before row["time"], the best first.

        Those that share most of its tags (among the last 64 of each), the latest first; for a row
        without tags the latest ones. Never the row's own headline.
        """
        end = bisect.bisect_left(self._times, row["time"])
        shared: collections.Counter = collections.Counter()
        for tag in set(row["tags"]):
            places = self._of_tag.get(tag, [])
            stop = bisect.bisect_left(places, end)
            shared.update(places[max(0, stop - _LOOK_BACK) : stop])
        ranked: Iterable[int] = sorted(shared, key=lambda i: (-shared[i], -i))
        if not row["tags"]:
            ranked = range(end - 1, -1, -1)
        headlines: dict[str, None] = {}
        for i in itertools.islice(ranked, _LOOK_BACK * (1 + len(row["tags"]))):
            if len(headlines) < n and self._headlines[i] != row["headline"]:
                headlines[self._headlines[i]] = None
        return list(headlines)


class ClickRates:
    """Smoothed click rates and their buckets, learnt from training rows.

    The rate of a row is (clicks + a * mean) / (impressions + a), a = `smoothing`, mean that of all
    training rows (their clicks over their impressions): few impressions say little, and leave the
    rate near the mean. Where no training row has impressions there is nothing to smooth with, and
    the rate is clicks over the mean clicks of a row: 1 is as many as usual.

    Attributes: `known`, whether that of any training row is; `mean`; `boundaries` float64
    [<= n_buckets - 1], quantiles of the training rates. Bucket 0 is a row whose rate is not known,
    1 one below the first boundary, `n_buckets` one from the last on. Where many rates are equal
    there are fewer boundaries, and some numbers between those two are left out; where all are,
    there is none, and all are in bucket 1.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], n_buckets: int, smoothing: float) -> None:
        self._smoothing = smoothing
        self._per_impression = any(row["impressions"] is not None for row in rows)
        known = [row for row in rows if n_buckets and self._known(row)]
        shown = sum(row["impressions"] if self._per_impression else 1.0 for row in known)
        self.mean = sum(row["clicks"] for row in known) / max(shown, 1.0)
        self.known = bool(known)
        rates = [self._rate(row) for row in known]
        cuts = np.arange(1, n_buckets) / max(n_buckets, 1)
        quantiles = np.unique(np.quantile(rates, cuts)) if known else np.zeros(0)
        self.boundaries = quantiles[quantiles > min(rates, default=0)]
        n = len(self.boundaries)
        self._buckets = 1 + np.rint(np.arange(n + 1) * (n_buckets - 1) / max(n, 1)).astype(np.int32)

    def __call__(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bucket int32 [n] (0 unknown), rate float32 [n] (0 unknown), known float32 [n]."""
        known = np.array([self.known and self._known(row) for row in rows], bool)
        rates = np.array(
            [self._rate(row) if is_known else 0.0 for row, is_known in zip(rows, known)], np.float64
        )
        buckets = self._buckets[np.searchsorted(self.boundaries, rates, "right")]
        buckets = np.where(known, buckets, 0).astype(np.int32)
        return buckets, rates.astype(np.float32), known.astype(np.float32)

    def _known(self, row: Mapping[str, Any]) -> bool:
        return row["clicks"] is not None and (not self._per_impression or bool(row["impressions"]))

    def _rate(self, row: Mapping[str, Any]) -> float:
        if not self._per_impression:
            return row["clicks"] / (self.mean or 1.0)
        a = self._smoothing
        return (row["clicks"] + a * self.mean) / (row["impressions"] + a)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["headline"], row["article"]


def _timed(rows: list[dict[str, Any]], unknown: float | None = None) -> list[dict[str, Any]]:
    for i, row in enumerate(rows):
        published = row["published"]
        row["time"] = published if published is not None else i if unknown is None else unknown
    return rows


def _check_columns(names: dict[str, str], table: Sequence[dict], path: str) -> None:
    for name, column in names.items():
        if not any(column in row["row"] for row in table):
            available = ", ".join(map(repr, table[0]["row"]))
            raise UserError(
                f"{path}: no column {column!r} for {name}; found {available}. Set "
                f"data.columns.{name} to one of them, or data.columns.{name}='' if "
                "there is none."
            )


def _row(columns: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    where = raw["where"]
    row = {"headline": columns.get("headline") or "", "article": columns.get("article", "")}
    for name in ("clicks", "impressions"):
        row[name] = _count(columns.get(name), name, where)
    row["published"] = _time(columns.get("published"), where)
    row["tags"] = columns.get("tags", [])
    return row | {"where": where, "row": raw["row"]}


def _count(text: str | None, name: str, where: str) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # So that rates are finite in float32; false for NaN too.
    if not (number == 0 or 1e-9 <= number <= 1e15):
        raise UserError(
            f"{where}: {name} is {text[:60]!r}; it has to be a number of at least 0 (at most 1e15, "
            "and not below 1e-9 but 0), or empty where it is not known. Correct it, or set "
            f"data.columns.{name}=''."
        )
    return number


def _time(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{where}: published is {text!r}; it has to be a number or an ISO 8601 "
            'date, such as "2024-05-01" or "2024-05-01 12:30". Correct it, or set '
            "data.columns.published='' to go by the order of the file."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _docstring_rows(spec: str, data: Any, with_clicks: bool) -> list[dict[str, Any]]:
    if spec != DOCSTRINGS:
        raise UserError(f'there is no headline set {spec!r}; the docstrings give "{DOCSTRINGS}".')
    records = docstrings.records(data.cache_dir)
    uses = _cached_uses(records, data.cache_dir) if with_clicks else {}
    rows = []
    for record in records:
        title, _, body = record.doc.strip().partition("\n")
        if len(body.strip()) >= _MIN_BODY_CHARS:
            clicks, impressions = map(float, uses[record.name]) if uses else (None, None)
            rows.append(
                {
                    "headline": title.strip(),
                    "article": body.strip(),
                    "clicks": clicks,
                    "impressions": impressions,
                    "published": None,
                    "tags": [record.library],
                    "where": f"docstring of {record.name}",
                    "row": record._asdict(),
                }
            )
    return rows


def _cached_uses(
    records: Sequence[docstrings.Record], cache_dir: str
) -> Mapping[str, Sequence[int]]:
    names = sorted({record.name for record in records})
    key = hash_of(f"uses {_USES_FORMAT}", *names, docstrings.files_key())
    path = cache_folder(cache_dir) / f"docstring-uses-{key}.json"
    try:
        cached = json.loads(path.read_bytes())
        if set(names) <= set(cached):
            return cached
    except (OSError, ValueError, TypeError):  # absent or damaged: counting again costs seconds
        pass
    uses = count_uses(((module, path) for _, module, path in docstrings.python_files()), names)
    write_cached(path, json.dumps(uses).encode())
    return uses


def count_uses(
    files: Iterable[tuple[str, str]], names: Iterable[str]
) -> dict[str, tuple[int, int]]:
    """{name: (uses, files)} of dotted names, in the files that import its package or are in it.

    Args:
      files: (module, path) each; files that this Python cannot parse are skipped.
      names: such as "numpy.linalg.norm": uses are those of `norm`, files those with `numpy`.
    """
    short = {name: (name.partition(".")[0], name.rpartition(".")[2]) for name in names}
    wanted: dict[str, set[str]] = collections.defaultdict(set)
    for package, last in short.values():
        wanted[package].add(last)
    uses: dict[str, collections.Counter] = {package: collections.Counter() for package in wanted}
    n_files: collections.Counter = collections.Counter()
    for module, path in files:
        reads, packages = _reads(path)
        packages.add(module.partition(".")[0])
        for package in packages & wanted.keys():
            n_files[package] += 1
            for name in reads.keys() & wanted[package]:
                uses[package][name] += reads[name]
    return {
        name: (uses[package][last], n_files[package]) for name, (package, last) in short.items()
    }


def _reads(path: str) -> tuple[collections.Counter, set[str]]:
    """How often a file reads each name, and the packages it imports."""
    reads, packages = collections.Counter(), set()
    for node in _nodes(path):
        kind = type(node)
        if kind is ast.Name and type(node.ctx) is ast.Load:
            reads[node.id] += 1
        elif kind is ast.Attribute and type(node.ctx) is ast.Load:
            reads[node.attr] += 1
        elif kind is ast.Import:
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif kind is ast.ImportFrom and not node.level:
            packages.add(node.module.partition(".")[0])
    return reads, packages


def _nodes(path: str) -> Iterator[ast.AST]:
    try:
        with open(path, "rb") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            return ast.walk(ast.parse(f.read()))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return iter(())
