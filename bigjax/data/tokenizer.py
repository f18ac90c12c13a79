"""Tokenizers: SentencePiece, WordPiece, GPT-2's byte-level BPE, and bytes, with one interface.

All but WordPiece turn any text into ids and back without loss, and know the number of UTF-8 bytes
of each id, so that bits per byte can be computed exactly. `encode_batch` never returns special ids
(bos, eos, pad), whatever the text contains: '<|endoftext|>' in a document is text.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import io
import json
import os
import re
from typing import Any

import numpy as np

from bigjax.bounds import at_least
from bigjax.data.bpe import ByteLevelBpe, byte_characters, read_bpe_folder
from bigjax.data.files import cache_folder, write_cached
from bigjax.data.tokenizer_base import META_FILE, Tokenizer, hash_of, read_bytes
from bigjax.data.wordpiece import WordPiece, read_wordpiece, train_wordpiece
from bigjax.errors import UserError
from bigjax.json_text import is_id, shown

__all__ = [
    "ByteLevelBpe",
    "Bytes",
    "SentencePiece",
    "Tokenizer",
    "WordPiece",
    "build",
    "byte_characters",
    "load",
    "train_sentencepiece",
    "train_wordpiece",
]

_SPACE = "\u2581"  # SentencePiece writes a space as this character
_TRAIN_FORMAT = 1  # raise it when the same text would train another SentencePiece model
_WORDPIECE_FORMAT = 1  # the same for WordPiece
_PROBE = "  Ünï\u0301 ﬁ\n\n\tx \u2028 中 \U0001f600\x00 "


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The section `data.tokenizer`."""

    # sentencepiece, wordpiece, bpe (GPT-2's byte level), bytes, or init_from: the source's
    kind: str = "sentencepiece"
    path: str = ""  # its file or folder; '' trains one (sentencepiece, wordpiece)
    vocab_size: int = 4096  # if it is trained
    lowercase: bool = True  # wordpiece: text is lower-cased, accents are removed

    RANGES = {"vocab_size": at_least(1)}


KIND = "data.tokenizer.kind"


def section(config) -> Any:
    """The section `data.tokenizer` of a config; {} for data without a tokenizer."""
    return config.data.get("tokenizer", {})


class Bytes(Tokenizer):
    """Ids 0 to 255 are bytes, then bos 256, eos 257 and pad 258."""

    kind = "bytes"

    def __init__(self) -> None:
        self.pieces = [bytes([i]) for i in range(256)] + [b""] * 3
        self.bos_id, self.eos_id, self.pad_id = 256, 257, 258
        self.fingerprint = hash_of("bytes")

    def _encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), given as the bytes of its .model file.

    Models that `train_sentencepiece` made are lossless. One from elsewhere may normalise text
    or lack byte fallback: then `lossless` is False, and byte counts are those of its pieces.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = "the model") -> None:
        import sentencepiece

        try:
            self._sp = sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as e:
            raise UserError(
                f"{name} is not a SentencePiece model ({e}). data.tokenizer.path has to name a "
                '.model file of kind "sentencepiece"; leave it empty to train one.'
            ) from None
        self._model, self.name = model, name
        self.unk_id = sp.unk_id() if sp.unk_id() >= 0 else None
        special = (sp.is_control, sp.is_unknown, sp.is_unused)
        self.pieces = [
            b"" if any(test(i) for test in special) else self._piece(i)
            for i in range(sp.get_piece_size())
        ]
        self.eos_id = sp.eos_id() if sp.eos_id() >= 0 else sp.bos_id()
        self.bos_id = sp.bos_id() if sp.bos_id() >= 0 else self.eos_id
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else self.eos_id
        if self.eos_id < 0:
            raise UserError(
                f"{name} has neither a bos nor an eos piece, so documents could not be "
                "told apart. Use a model trained with eos_id >= 0."
            )
        self.fingerprint = hash_of("sentencepiece", model)
        byte_ids = [sp.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]
        self._space_ids = byte_ids if all(sp.is_byte(i) for i in byte_ids) else []
        self.lossless = bool(self._space_ids) and super().decode(self.encode(_PROBE)) == _PROBE

    def _piece(self, i: int) -> bytes:
        piece = self._sp.id_to_piece(i)
        if self._sp.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        odd = {i for i, text in enumerate(texts) if self._space_ids and _SPACE in text}
        plain = [text for i, text in enumerate(texts) if i not in odd]
        ids = iter(self._sp.encode(plain, num_threads=os.cpu_count() or 1) if plain else [])
        return [self._encode_odd(text) if i in odd else next(ids) for i, text in enumerate(texts)]

    def _encode_odd(self, text: str) -> list[int]:
        """Decoding would turn a real U+2581 into a space: it is encoded as its three bytes."""
        first, *rest = self._sp.encode(text.split(_SPACE), num_threads=1)
        for part in rest:
            first = first + self._space_ids + part
        return first

    def decode(self, ids: Iterable[int]) -> str:
        """As Tokenizer.decode; a model that is not lossless decodes by its own rules."""
        if self.lossless:
            return super().decode(ids)
        return self._sp.decode(
            [i for i in map(int, ids) if 0 <= i < self.vocab_size and self.pieces[i]]
        )

    def _files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model}


def train_sentencepiece(documents: Iterable[str], vocab_size: int) -> SentencePiece:
    """Trains a lossless BPE model with byte fallback; the same documents give the same model.

    BPE and not unigram: as few tokens, and 1 s instead of 15 for 4 MB of text. Ids: unk 0,
    bos 1, eos 2, pad 3, bytes 4 to 259. Raises UserError if the text is too small for
    `vocab_size` or `vocab_size` too small for the text's alphabet.
    """
    texts = list(documents)
    try:
        return SentencePiece(_train(texts, vocab_size, 0.9999))
    except RuntimeError as e:
        if "required_chars" not in str(e):
            raise _training_error(str(e), texts, vocab_size) from None
    try:
        return SentencePiece(_train(_common_text(texts, (vocab_size - 260) // 2), vocab_size, 1.0))
    except RuntimeError as e:
        raise _training_error(str(e), texts, vocab_size) from None


def _train(texts: list[str], vocab_size: int, coverage: float) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=coverage,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 30,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=5,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
    )
    return model.getvalue()


def _common_text(texts: list[str], n_letters: int) -> list[str]:
    """`texts` split at all but the `n_letters` most common characters; bytes will cover the others.

    For Chinese and a small vocabulary: the trainer refuses to leave out 2% or more itself.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    common = sorted(counts, key=lambda char: (-counts[char], char))[: max(0, n_letters)]
    if not common:
        return []
    keep = re.compile("[" + re.escape("".join(common)) + "]+")
    return [part for text in texts for part in keep.findall(text)]


def build(
    spec: Any,
    cache_dir: str,
    sample: Callable[[], Iterator[str]],
    content: str,
    log: Callable[[str], None] = print,
) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: read from `spec.path`, or trained once and cached.

    Args:
      spec: kind, path, vocab_size and (for wordpiece) lowercase, as in the config.
      sample: returns the documents to train on; called only if there is nothing to load.
      content: a fingerprint of these documents, for the name in the cache.
    """
    kind = spec.kind
    if kind == "bytes":
        return Bytes()
    if kind == "bpe":
        return read_bpe_folder(spec.path)
    if kind == "wordpiece":
        return _build_wordpiece(spec, cache_dir, sample, content, log)
    if kind != "sentencepiece":
        raise UserError(
            f'data.tokenizer.kind is {kind!r}; it has to be "wordpiece", '
            '"sentencepiece", "bpe" or "bytes".'
        )
    if spec.path:
        from etils import epath

        saved = epath.Path(spec.path) / "tokenizer.model"  # written by Tokenizer.save
        path = saved if saved.exists() else spec.path
        tokenizer = SentencePiece(read_bytes(path, "a SentencePiece .model file"), str(path))
        if not tokenizer.lossless:
            log(
                f"note: {spec.path} does not keep every text (it normalises, or has no byte "
                "fallback); byte counts are those of its pieces"
            )
        return tokenizer
    name = hash_of(f"sentencepiece {_TRAIN_FORMAT} {spec.vocab_size} {content}") + ".model"
    path = cache_folder(cache_dir, "tokenizers") / name
    if not path.exists():
        log(
            f"data: first use of this text: training a SentencePiece vocabulary of "
            f"{spec.vocab_size:,} (kept in {path})"
        )
        tokenizer = train_sentencepiece(sample(), spec.vocab_size)
        write_cached(path, tokenizer._files()["tokenizer.model"])
    return SentencePiece(path.read_bytes(), str(path))


def named(spec: Any, log: Callable[[str], None] = print) -> Tokenizer:
    """The tokenizer of a section that names its files (or of kind bytes, which has none)."""
    return build(spec, "", lambda: iter(()), "", log)


def _build_wordpiece(
    spec: Any,
    cache_dir: str,
    sample: Callable[[], Iterator[str]],
    content: str,
    log: Callable[[str], None],
) -> WordPiece:
    lowercase = bool(spec.lowercase)
    if spec.path:
        tokenizer = read_wordpiece(spec.path, lowercase)
        if tokenizer.lowercase and any(piece != piece.lower() for piece in tokenizer.pieces):
            log(
                f"note: {spec.path} has pieces with capitals that lower-cased text never reaches; "
                "is it a cased vocabulary? Then set data.tokenizer.lowercase=False"
            )
        return tokenizer
    name = hash_of(f"wordpiece {_WORDPIECE_FORMAT} {spec.vocab_size} {lowercase} {content}")
    path = cache_folder(cache_dir, "tokenizers") / f"{name}.vocab.txt"
    if not path.exists():
        log(
            f"data: first use of this text: training a WordPiece vocabulary of "
            f"{spec.vocab_size:,} (kept in {path})"
        )
        tokenizer = train_wordpiece(sample(), spec.vocab_size, lowercase)
        write_cached(path, tokenizer._files()["vocab.txt"])
    return read_wordpiece(path, lowercase)


def read_meta(folder: Any) -> dict[str, Any]:
    """The metadata of `Tokenizer.save`: kind and ids. Raises UserError for anything else."""
    content = read_bytes(folder / META_FILE, "a tokenizer saved by bigjax")
    wrong = f"{folder / META_FILE} was not saved by bigjax"
    try:
        meta = json.loads(content)
        kind_and_ids = {key: meta[key] for key in ("kind", "bos_id", "eos_id", "pad_id")}
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise UserError(f"{wrong} ({e!r}). Restore it from the run.") from None
    for key, value in kind_and_ids.items():
        if not (isinstance(value, str) if key == "kind" else is_id(value)):
            raise UserError(f"{wrong} ({key} is {shown(value)}). Restore it from the run.")
    return kind_and_ids


def load(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises UserError if the folder has none."""
    from etils import epath

    source = epath.Path(folder)
    kind = read_meta(source)["kind"]
    if kind == "bytes":
        return Bytes()
    if kind == "bpe":
        return read_bpe_folder(source)
    if kind == "wordpiece":
        return read_wordpiece(source)
    return SentencePiece(read_bytes(source / "tokenizer.model", "a model"), str(source))


def _training_error(cause: str, texts: list[str], vocab_size: int) -> UserError:
    n_chars = sum(map(len, texts))
    limit = re.search(r"<= (\d+)", cause)
    if limit:
        reason = f"that much text makes at most {limit.group(1)} pieces"
    elif vocab_size < 512:
        reason = "256 bytes and 4 special ids leave too few pieces for its letters"
    else:
        reason = cause.rsplit("] ", 1)[-1] if n_chars else "there is no text"
    return UserError(
        f"cannot train a SentencePiece vocabulary of data.tokenizer.vocab_size={vocab_size} on "
        f"{len(texts):,} documents with {n_chars:,} characters: {reason}. Change vocab_size, give "
        'more text in data.sources, or set data.tokenizer.kind="bytes".'
    )
