"""Tokenizers: SentencePiece, GPT-2's byte-level BPE, and plain bytes, behind one small class.

All three turn any text into ids and back without loss, and know how many UTF-8 bytes each id
stands for, so that bits per byte can be computed exactly. Special ids (bos, eos, pad) never
come out of `encode_batch`, whatever the text contains: '<|endoftext|>' in a document is text.
"""

import collections
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bigjax.data.files import cache_folder, write_atomically
from bigjax.errors import UserError

_SPACE = '\u2581'  # SentencePiece writes a space as this character
_META_FILE = "bigjax_tokenizer.json"
_TRAIN_FORMAT = 1  # raise it when the same text would train another SentencePiece model
_PROBE = '  Ünï\u0301 ﬁ\n\n\tx \u2028 中 \U0001f600\x00 '


class Tokenizer:
    """What the three kinds share; `pieces[i]` holds the UTF-8 bytes of id i, b'' if special."""

    kind: str
    pieces: list[bytes]
    bos_id: int
    eos_id: int
    pad_id: int
    fingerprint: str  # 16 hex digits: equal means the same ids for every text
    lossless = True

    @property
    def vocab_size(self) -> int:
        """The number of ids, special ones included."""
        return len(self.pieces)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: the UTF-8 length of each id, 0 for special ids."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids a text, without bos and eos; runs on all cores.

        Raises UserError for text that has no UTF-8 form (lone surrogates).
        """
        texts = list(texts)
        try:
            for text in texts:  # the libraries' own errors for this name nothing
                if not text.isascii():
                    text.encode()
        except UnicodeEncodeError as e:
            raise UserError(
                f"cannot tokenize text with {e.object[e.start:e.end]!r}: a lone surrogate has no "
                "UTF-8 form. Clean it with text.encode('utf-8', 'replace').decode().") from None
        return [np.asarray(ids, np.int32) for ids in self._encode_batch(texts)]

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text, int32 [n]."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids and ids outside the vocabulary are skipped.

        Ids that cut a character in the middle give U+FFFD in its place.
        """
        n = self.vocab_size
        joined = b"".join(self.pieces[i] for i in map(int, ids) if 0 <= i < n)
        return joined.decode("utf-8", "replace")

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load` needs to `folder`, which is made if absent (may be on gs://)."""
        from etils import epath
        target = epath.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            (target / name).write_bytes(content)
        meta = {"kind": self.kind, "vocab_size": self.vocab_size, "fingerprint": self.fingerprint,
                "bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}
        (target / _META_FILE).write_text(json.dumps(meta, indent=1) + '\n')

    def _encode_batch(self, texts: list[str]) -> list[Sequence[int]]:
        raise NotImplementedError

    def _files(self) -> dict[str, bytes]:
        return {}


class Bytes(Tokenizer):
    """Ids 0 to 255 are bytes, then bos 256, eos 257 and pad 258."""

    kind = "bytes"

    def __init__(self) -> None:
        self.pieces = [bytes([i]) for i in range(256)] + [b""] * 3
        self.bos_id, self.eos_id, self.pad_id = 256, 257, 258
        self.fingerprint = _hash("bytes")

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
                '.model file of kind "sentencepiece"; leave it empty to train one.') from None
        self._model = model
        special = (sp.is_control, sp.is_unknown, sp.is_unused)
        self.pieces = [b"" if any(test(i) for test in special) else self._piece(i)
                       for i in range(sp.get_piece_size())]
        self.eos_id = sp.eos_id() if sp.eos_id() >= 0 else sp.bos_id()
        self.bos_id = sp.bos_id() if sp.bos_id() >= 0 else self.eos_id
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else self.eos_id
        if self.eos_id < 0:
            raise UserError(f"{name} has neither a bos nor an eos piece, so documents could not be "
                            "told apart. Use a model trained with eos_id >= 0.")
        self.fingerprint = _hash("sentencepiece", model)
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
        """A real U+2581 would come back as a space: it is written as its three bytes."""
        first, *rest = self._sp.encode(text.split(_SPACE), num_threads=1)
        for part in rest:
            first = first + self._space_ids + part
        return first

    def decode(self, ids: Iterable[int]) -> str:
        """As Tokenizer.decode; a model that is not lossless decodes by its own rules."""
        if self.lossless:
            return super().decode(ids)
        return self._sp.decode([i for i in map(int, ids)
                                if 0 <= i < self.vocab_size and self.pieces[i]])

    def _files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model}


class ByteLevelBpe(Tokenizer):
    """GPT-2's byte-level BPE (Radford et al. 2019) from the text of its two files.

    bos, eos and pad are '<|endoftext|>' if the vocabulary has it (GPT-2: 50256), else '<s>',
    '</s>' and '<pad>' as in RoBERTa.
    """

    kind = "bpe"

    def __init__(self, vocab: bytes, merges: bytes, name: str = "the BPE folder") -> None:
        from tokenizers import Tokenizer as RustTokenizer
        from tokenizers import models, pre_tokenizers
        self._vocab, self._merges = vocab, merges
        table, pairs = _read_bpe(vocab, merges, name)
        self.bos_id = _first_of(table, ("<|endoftext|>", "<s>"), name)
        self.eos_id = _first_of(table, ("<|endoftext|>", "</s>"), name)
        self.pad_id = table.get("<pad>", self.eos_id)
        self.pieces = [b""] * (max(table.values()) + 1)
        special = {"<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>"}
        byte_of = {char: byte for byte, char in byte_characters().items()}
        for piece, i in table.items():
            if piece not in special:
                self.pieces[i] = bytes(map(byte_of.get, piece, [0] * len(piece)))
        missing = [byte for byte, char in byte_characters().items() if char not in table]
        if missing:
            raise UserError(f"{name} is not a byte-level vocabulary: it lacks {len(missing)} of "
                            f"the 256 bytes (the first is 0x{missing[0]:02X}), so some text would "
                            "be lost. Use the two files of a tokenizer in the style of GPT-2.")
        try:
            self._bpe = RustTokenizer(models.BPE(vocab=table, merges=pairs))
        except Exception as e:  # the Rust library raises plain Exception
            raise UserError(f"{name}: the merges do not fit the vocabulary ({e}). Check that both "
                            "files come from the same tokenizer.") from None
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.fingerprint = _hash("bpe", vocab, merges)

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(texts)]

    def _files(self) -> dict[str, bytes]:
        return {"vocab.json": self._vocab, "merges.txt": self._merges}


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte -> the printable character GPT-2's files write it as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return ({byte: chr(byte) for byte in printable}
            | {byte: chr(256 + i) for i, byte in enumerate(others)})


def train_sentencepiece(documents: Iterable[str], vocab_size: int) -> SentencePiece:
    """Trains a lossless BPE model with byte fallback; the same documents give the same model.

    BPE and not unigram: as few tokens, and 1 s instead of 15 for 4 MB of text. Ids: unk 0,
    bos 1, eos 2, pad 3, bytes 4 to 259. Raises UserError if the text is too small for
    `vocab_size` or `vocab_size` too small for the text's alphabet.
    """
    texts = list(documents)
    try:
        return SentencePiece(_train(texts, vocab_size, .9999))
    except RuntimeError as e:
        if "required_chars" not in str(e):
            raise _training_error(str(e), texts, vocab_size) from None
    try:
        return SentencePiece(_train(_common_text(texts, (vocab_size - 260) // 2), vocab_size, 1.))
    except RuntimeError as e:
        raise _training_error(str(e), texts, vocab_size) from None


def _train(texts: list[str], vocab_size: int, coverage: float) -> bytes:
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe",
        vocab_size=vocab_size, character_coverage=coverage, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 30, input_sentence_size=0, shuffle_input_sentence=False,
        num_threads=1, minloglevel=5, unk_id=0, bos_id=1, eos_id=2, pad_id=3)
    return model.getvalue()


def _common_text(texts: list[str], n_letters: int) -> list[str]:
    """`texts` cut at all but the `n_letters` most common characters, which bytes will cover.

    For Chinese and a small vocabulary: the trainer itself refuses to leave out 2% or more.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    common = sorted(counts, key=lambda char: (-counts[char], char))[:max(0, n_letters)]
    if not common:
        return []
    keep = re.compile("[" + re.escape("".join(common)) + "]+")
    return [part for text in texts for part in keep.findall(text)]


def build(spec: Any, cache_dir: str, sample: Callable[[], Iterator[str]], content: str,
          log: Callable[[str], None] = print) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: read from `spec.path`, or trained once and cached.

    Args:
      spec: kind, path and vocab_size, as in the config.
      sample: gives the documents to train on; called only when there is nothing to load.
      content: a fingerprint of what `sample` gives, for the name in the cache.
    """
    kind = spec.kind
    if kind == "bytes":
        return Bytes()
    if kind == "bpe":
        return _read_bpe_folder(spec.path)
    if kind != "sentencepiece":
        raise UserError(f'data.tokenizer.kind is {kind!r}; it has to be "sentencepiece", "bpe" '
                        'or "bytes".')
    if spec.path:
        from etils import epath
        saved = epath.Path(spec.path) / "tokenizer.model"  # what Tokenizer.save wrote
        path = saved if saved.exists() else spec.path
        tokenizer = SentencePiece(_read(path, "a SentencePiece .model file"), str(path))
        if not tokenizer.lossless:
            log(f"note: {spec.path} does not keep every text (it normalises, or has no byte "
                "fallback); byte counts are those of its pieces")
        return tokenizer
    name = _hash(f"sentencepiece {_TRAIN_FORMAT} {spec.vocab_size} {content}") + ".model"
    path = cache_folder(cache_dir, "tokenizers") / name
    if not path.exists():
        log(f"data: first use of this text: training a SentencePiece vocabulary of "
            f"{spec.vocab_size:,} (kept in {path})")
        tokenizer = train_sentencepiece(sample(), spec.vocab_size)
        write_atomically(path, tokenizer._files()["tokenizer.model"])
    return SentencePiece(path.read_bytes(), str(path))


def load(folder: str | os.PathLike) -> Tokenizer:
    """What `Tokenizer.save` wrote. Raises UserError if the folder holds none."""
    from etils import epath
    source = epath.Path(folder)
    meta = json.loads(_read(source / _META_FILE, "a tokenizer saved by bigjax"))
    if meta["kind"] == "bytes":
        return Bytes()
    if meta["kind"] == "bpe":
        return _read_bpe_folder(source)
    return SentencePiece(_read(source / "tokenizer.model", "a model"), str(source))


def _read_bpe_folder(folder: Any) -> ByteLevelBpe:
    from etils import epath
    if not str(folder):
        raise UserError('data.tokenizer.kind is "bpe" but data.tokenizer.path is empty. Set it to '
                        "a folder with vocab.json (or encoder.json) and merges.txt (or vocab.bpe).")
    root = epath.Path(folder)
    paths = []
    for names in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        present = [root / name for name in names if (root / name).exists()]
        if not present:
            raise UserError(f"data.tokenizer.path={folder}: found neither {names[0]} nor "
                            f"{names[1]} there. A GPT-2 style tokenizer folder has one of each: "
                            "vocab.json or encoder.json, and merges.txt or vocab.bpe.")
        paths.append(present[0])
    return ByteLevelBpe(paths[0].read_bytes(), paths[1].read_bytes(), str(folder))


def _read_bpe(vocab: bytes, merges: bytes, name: str) -> tuple[dict, list]:
    try:
        table = json.loads(vocab)
        lines = merges.decode().split('\n')
        pairs = [tuple(line.split(" ")) for line in lines
                 if line.strip() and not line.startswith("#version")]
    except ValueError as e:
        raise UserError(f"{name}: cannot read the vocabulary or the merges ({e}). The first has to "
                        "be a JSON object of piece: id, the second UTF-8 text.") from None
    if not isinstance(table, dict) or not all(isinstance(i, int) for i in table.values()):
        raise UserError(f"{name}: the vocabulary has to be a JSON object of piece: id.")
    if any(len(pair) != 2 for pair in pairs):
        bad = next(pair for pair in pairs if len(pair) != 2)
        raise UserError(f"{name}: a merge has to be two pieces with a space between; found "
                        f'{" ".join(bad)!r}.')
    return table, pairs


def _first_of(table: dict[str, int], names: tuple[str, ...], name: str) -> int:
    for piece in names:
        if piece in table:
            return table[piece]
    raise UserError(f'{name}: the vocabulary has none of {", ".join(names)}, so documents could '
                    "not be told apart. Add one to the vocabulary file with the next free id.")


def _read(path: Any, what: str) -> bytes:
    from etils import epath
    try:
        return epath.Path(path).read_bytes()
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}. It has to be {what}.") from None


def _training_error(cause: str, texts: list[str], vocab_size: int) -> UserError:
    n_chars = sum(map(len, texts))
    limit = re.search(r'<= (\d+)', cause)
    if limit:
        reason = f"that much text makes at most {limit.group(1)} pieces"
    elif vocab_size < 512:
        reason = "256 bytes and 4 special ids leave too few pieces for its letters"
    else:
        reason = cause.rsplit("] ", 1)[-1] if n_chars else "there is no text"
    return UserError(
        f"cannot train a SentencePiece vocabulary of data.tokenizer.vocab_size={vocab_size} on "
        f"{len(texts):,} documents with {n_chars:,} characters: {reason}. Change vocab_size, give "
        'more text in data.sources, or set data.tokenizer.kind="bytes".')


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:16]
