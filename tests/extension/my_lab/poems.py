"""A source of text, the column of a CSV file, and a tokenizer with an id per letter."""

import collections
import csv
import dataclasses

from bigjax.bounds import at_least
from bigjax.data.files import fingerprint_files
from bigjax.data.tokenizers.base import Tokenizer, hash_of
from bigjax.errors import UserError


class Column:
    """data.sources.NAME.kind."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""
        column: str = "text"

        MAY_CHANGE = DATA_PATHS = ("path",)

    @staticmethod
    def documents(options, reading):
        """The documents, in a fixed order."""
        with open(options.path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if options.column not in (rows.fieldnames or ()):
                raise UserError(
                    f"{reading.where} has no column {options.column!r}; it has: "
                    f"{', '.join(rows.fieldnames or ())}. Set the source's key `column`."
                )
            for row in rows:
                yield row[options.column] or ""  # of a row that is too short

    @staticmethod
    def fingerprint(options, reading):
        """Changes when the documents would; not with the place of the file."""
        return f"column {options.column} {fingerprint_files([options.path])}"


class Letters(Tokenizer):
    """data.tokenizer.kind."""

    lossless = False  # rare letters are lost

    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 60  # the most common letters

        RANGES = {"size": at_least(1)}

    def __init__(self, letters: str) -> None:
        self.letters, n = letters, len(letters)
        self.pieces = [*(letter.encode() for letter in letters), b"", b"", b""]
        self.unk_id, self.bos_id, self.eos_id, self.pad_id = n, n + 1, n + 2, n + 2
        self.ids = {letter: i for i, letter in enumerate(letters)}
        self.fingerprint = hash_of("letters", letters)

    def encode_texts(self, texts):
        return [[self.ids.get(letter, self.unk_id) for letter in text] for text in texts]

    def files(self):
        """The content that `load` reads from a run's folder."""
        return {"letters.txt": self.letters.encode()}

    @staticmethod
    def build(options, training):
        """Trains it once for the same text and options; `training.cached` returns the file."""

        def train(texts):
            counts = collections.Counter(letter for text in texts for letter in text)
            return "".join(sorted(dict(counts.most_common(options.size)))).encode()

        path = training.cached(f"letters {options.size}", ".txt", "an alphabet", train)
        return Letters(path.read_bytes().decode())

    @staticmethod
    def load(folder):
        return Letters((folder / "letters.txt").read_bytes().decode())
