"""SentencePiece models (Kudo and Richardson 2018)."""

import collections
from collections.abc import Iterable
import io
import os
import re
from typing import Any

from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import TEMPLATE, Tokenizer, Training, hash_of, read_bytes
from bigjax.errors import UserError

_SPACE = "\u2581"  # SentencePiece writes a space as this character
_TRAIN_FORMAT = 1  # raise it when the same text would train another model
_FILE = "tokenizer.model"
_SENTINELS = "sentinels.json"  # their number, in a saved tokenizer that has some
_PROBE = "  Ünï\u0301 ﬁ\n\n\tx \u2028 中 \U0001f600\x00 "


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), given as the bytes of its .model file.

    Models that `train_sentencepiece` made are lossless. One from elsewhere may normalise text
    or lack byte fallback: then `lossless` is False, and byte counts are those of its pieces.

    sentinels: number of special ids after those of the model, the first sentinel last, as T5's.
    chat_template: of a chat model, in which the texts of control pieces are these pieces.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        name: str = "the model",
        sentinels: int = 0,
        chat_template: str = "",
    ) -> None:
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
        self.special = {sp.id_to_piece(i): i for i in range(len(self.pieces)) if sp.is_control(i)}
        roles = {"bos": sp.bos_id(), "eos": sp.eos_id(), "pad": sp.pad_id()}
        self.role_tokens = {f"{k}_token": sp.id_to_piece(i) for k, i in roles.items() if i >= 0}
        self.chat_templates = {"default": chat_template} if chat_template else {}
        self.sentinel_ids = range(len(self.pieces) + sentinels - 1, len(self.pieces) - 1, -1)
        self.pieces += [b""] * sentinels
        self.eos_id = sp.eos_id() if sp.eos_id() >= 0 else sp.bos_id()
        self.bos_id = sp.bos_id() if sp.bos_id() >= 0 else self.eos_id
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else self.eos_id
        if self.eos_id < 0:
            raise UserError(
                f"{name} has neither a bos nor an eos piece, so documents could not be "
                "distinguished. Use a model trained with eos_id >= 0."
            )
        parts = (f"{sentinels} sentinels",) if sentinels else ()
        self.fingerprint = hash_of("sentencepiece", model, *parts)
        byte_ids = [sp.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]
        self._space_ids = byte_ids if all(sp.is_byte(i) for i in byte_ids) else []
        self.lossless = bool(self._space_ids) and super().decode(self.encode(_PROBE)) == _PROBE

    def _piece(self, i: int) -> bytes:
        piece = self._sp.id_to_piece(i)
        if self._sp.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
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

    def files(self) -> dict[str, bytes]:
        n = len(self.sentinel_ids)
        files = {_FILE: self._model}
        if n:
            files[_SENTINELS] = f"{n}\n".encode()
        if self.chat_templates:
            files[TEMPLATE] = self.chat_templates["default"].encode()
        return files


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


def build(options: Config, training: Training) -> SentencePiece:
    """The model of options.path, or one that is trained."""
    if not options.path:
        path = training.cached(
            f"sentencepiece {_TRAIN_FORMAT} {options.vocab_size}",
            ".model",
            f"a SentencePiece vocabulary of {options.vocab_size:,}",
            lambda texts: train_sentencepiece(texts, options.vocab_size)._model,
        )
        return SentencePiece(path.read_bytes(), str(path), options.sentinels)
    from etils import epath

    saved, sentinels = epath.Path(options.path) / _FILE, options.sentinels
    path = saved if saved.exists() else options.path
    if saved.exists():  # written by Tokenizer.save
        sentinels = sentinels or saved_sentinels(epath.Path(options.path))
    content = read_bytes(path, "a SentencePiece .model file")
    template = _chat_template(epath.Path(path).parent)
    tokenizer = SentencePiece(content, str(path), sentinels, template)
    if not tokenizer.lossless:
        training.log(
            f"note: {options.path} does not keep every text (it normalises, or has no byte "
            "fallback); byte counts are those of its pieces"
        )
    return tokenizer


def load(folder: Any) -> SentencePiece:
    """The tokenizer of a folder that Tokenizer.save wrote."""
    content = read_bytes(folder / _FILE, "a model")
    return SentencePiece(content, str(folder), saved_sentinels(folder), _chat_template(folder))


def _chat_template(folder: Any) -> str:
    """The chat template beside a model, '' without one."""
    file = folder / TEMPLATE
    if not file.exists():
        return ""
    try:
        return read_bytes(file, "a chat template").decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{file} is not UTF-8 ({e}). Save it as UTF-8.") from None


def saved_sentinels(folder: Any) -> int:
    """The number of sentinels of the tokenizer in a folder that Tokenizer.save wrote."""
    file = folder / _SENTINELS
    if not file.exists():
        return 0
    content = read_bytes(file, "the number of sentinels")
    if not content.strip().isdigit():
        raise UserError(f"{file} is not the number of sentinels. Restore it from the run.")
    return int(content)


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
        'more text, or set data.tokenizer.kind="bytes".'
    )
