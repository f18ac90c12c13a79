"""The base class of tokenizers, and helpers for their files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

from bigjax.data.files import cache_folder, write_cached
from bigjax.errors import UserError

TEMPLATE = "chat_template.jinja"  # beside a tokenizer, of a chat model
META_FILE = "bigjax_tokenizer.json"


class Tokenizer:
    """Base class; `pieces[i]` has the UTF-8 bytes of id i, b'' if special.

    A subclass sets the attributes without a value below, and defines `encode_texts` and, if it has
    files, `files`. Ids of text never include special ones (bos, eos, pad), whatever the text
    contains: '<|endoftext|>' in a document is text.
    """

    kind: str  # the module that defines it; `tokenizers.build` and `load` set it
    pieces: list[bytes]
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int | None = None  # of text that the vocabulary lacks; None: there is no such text
    sentinel_ids: Sequence[int] = ()  # special ids for hidden spans, the first one first
    chat_templates: Mapping[str, str] = {}  # {name: template}, of published chat models
    special: Mapping[str, int] = {}  # {text: id} of special tokens that a chat template may write
    role_tokens: Mapping[str, str] = {}  # {"bos_token": its text in `special`, ...}
    name: str = "the tokenizer"  # its origin, for messages
    fingerprint: str  # 16 hex digits: equal means the same ids for every text
    lossless = True

    @property
    def vocab_size(self) -> int:
        """The number of ids, special ones included."""
        return len(self.pieces)

    @functools.cached_property
    def leading_ids(self) -> tuple[int, ...]:
        """The ids before a document and before a prompt that is continued: bos. A subclass may set
        others, () for none."""
        return (self.bos_id,)

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that may end a text, eos first. A subclass may set others."""
        return (self.eos_id,)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: the UTF-8 length of each id, 0 for special ids."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids per text, without bos and eos; runs on all cores.

        Raises UserError for text that has no UTF-8 form (lone surrogates).
        """
        return [np.asarray(ids, np.int32) for ids in self.encode_texts(check_utf8(texts))]

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text, int32 [n]."""
        return self.encode_batch([text])[0]

    def encode_parts(
        self, rows: Sequence[Sequence[str | int]], cuts: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [n], spans int64 [n, 2]) of each row of texts with special ids between them.

        spans: the first character of a token and the one after its last in the row, in which an id
        counts as one character. cuts: the characters of each row at which spans must be right; a
        tokenizer that changes texts knows no others. Raises as `encode_batch`.
        """
        texts = [part for row in rows for part in row if isinstance(part, str)]
        encoded, out = iter(self.encode_batch(texts)), []
        for row, at_cuts in zip(rows, cuts):
            ids, spans, at = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int64)], 0
            for part in row:
                if isinstance(part, str):
                    ids.append(next(encoded))
                    inside = [cut - at for cut in at_cuts if at < cut < at + len(part)]
                    spans.append(at + self._spans(part, ids[-1], inside))
                    at += len(part)
                else:
                    ids.append(np.array([part], np.int32))
                    spans.append(np.array([[at, at + 1]]))
                    at += 1
            out.append((np.concatenate(ids), np.concatenate(spans)))
        return out

    def _spans(self, text: str, ids: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
        """int64 [n, 2]: the characters of each token of a text, exact at the cuts: see
        `encode_parts`."""
        content = np.frombuffer(text.encode(), np.uint8)
        joined = b"".join(self.pieces[i] for i in ids)
        for before in (b"", b" "):  # a space that the tokenizer puts before a text
            if joined == before + content.tobytes() and len(content):
                ends = np.cumsum(self.token_bytes[ids]) - len(before)
                first = np.clip(np.append(-len(before), ends)[:-1], 0, len(content) - 1)
                last = np.maximum(ends - 1, first)
                char = np.cumsum((content & 0xC0) != 0x80) - 1  # of each byte
                return np.stack([char[first], char[last] + 1], axis=1)
        # Tokens that the text before a cut shares with the complete text are before the cut. Where
        # it has others too, one of them crosses the cut.
        spans = np.tile(np.array([0, len(text)]), (len(ids), 1))
        for cut in cuts:
            part = self.encode(text[:cut])
            n = min(len(part), len(ids))
            same = int(np.append(part[:n] != ids[:n], True).argmax())
            spans[:same, 1] = np.minimum(spans[:same, 1], cut)
            after = same + (same < len(part))
            spans[after:, 0] = np.maximum(spans[after:, 0], cut)
        return spans

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids and ids outside the vocabulary are skipped.

        A character with missing ids becomes U+FFFD.
        """
        n = self.vocab_size
        joined = b"".join(self.pieces[i] for i in map(int, ids) if 0 <= i < n)
        return joined.decode("utf-8", "replace")

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files for `load` to `folder`, which is created if absent (may be on gs://)."""
        from etils import epath

        target = epath.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        meta = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
        }
        (target / META_FILE).write_text(json.dumps(meta, indent=1) + "\n")

    def encode_texts(self, texts: list[str]) -> list[Sequence[int]]:
        """The ids of each text, all of which have a UTF-8 form."""
        raise NotImplementedError

    def files(self) -> dict[str, bytes]:
        """{name: content} of the files from which its module's `load` restores it."""
        return {}


class Training(NamedTuple):
    """What a tokenizer can be trained on.

    texts() -> the documents. content: their fingerprint. cache_dir: data.cache_dir. log(line).
    """

    texts: Callable[[], Iterator[str]]
    content: str
    cache_dir: str
    log: Callable[[str], None]

    def cached(
        self, settings: str, suffix: str, what: str, train: Callable[[Iterator[str]], bytes]
    ) -> Any:
        """The path of a file with train(texts), which is called once for these texts and settings.

        settings: everything else that the content follows from. suffix: of the file's name. what:
        the tokenizer in a few words, for the log.
        """
        if not self.cache_dir:  # of `named`, whose texts() says that nothing can be trained
            self.texts()
        name = hash_of(f"{settings} {self.content}") + suffix
        path = cache_folder(self.cache_dir, "tokenizers") / name
        if not path.exists():
            texts = self.texts()
            self.log(f"data: first use of this text: training {what} (kept in {path})")
            write_cached(path, train(texts))
        return path


def check_utf8(texts: Sequence[str]) -> list[str]:
    """`texts` as a list. Raises UserError for text that has no UTF-8 form (lone surrogates)."""
    texts = list(texts)
    try:
        for text in texts:  # the libraries' own errors for this do not say where
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError as e:
        raise UserError(
            f"cannot tokenize text with {e.object[e.start : e.end]!r}: a lone surrogate has no "
            "UTF-8 form. Clean it with text.encode('utf-8', 'replace').decode()."
        ) from None
    return texts


def read_bytes(path: Any, what: str) -> bytes:
    """The file at `path`; UserError, saying that it has to be `what`, if it cannot be read."""
    from etils import epath

    try:
        return epath.Path(path).read_bytes()
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}. It has to be {what}.") from None


def hash_of(*parts: str | bytes) -> str:
    """16 hex digits that change with any of `parts`, or with where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:16]
