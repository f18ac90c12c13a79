"""GPT-2's byte-level BPE, from its two files."""

import codecs
from collections.abc import Mapping
import functools
import json
import re
from typing import Any

from bigjax.data.text_files import read_text
from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import Tokenizer, Training, hash_of
from bigjax.errors import UserError
from bigjax.json_text import check_pieces


class ByteLevelBpe(Tokenizer):
    """GPT-2's byte-level BPE (Radford et al. 2019) from the text of its two files, in UTF-8 with or
    without a byte order mark, their lines ending in LF or CRLF (or CRCRLF).

    bos, eos and pad are '<|endoftext|>' if the vocabulary has it (GPT-2: 50256), else '<s>',
    '</s>' and '<pad>' as in RoBERTa. added: {text: id} of special tokens beside the vocabulary.
    """

    kind = "bpe"

    def __init__(
        self,
        vocab: bytes,
        merges: bytes,
        name: str = "the BPE folder",
        added: Mapping[str, int] = {},
    ) -> None:
        from tokenizers import Tokenizer as RustTokenizer
        from tokenizers import models, pre_tokenizers

        # In the form that other readers expect, so that equal tokenizers have equal fingerprints.
        vocab, merges = self._vocab, self._merges = _plain(vocab), _plain(merges)
        table, pairs = _read_bpe(vocab, merges, name)
        table = check_pieces({**table, **added}, name)
        self.bos_id = _first_of(table, ("<|endoftext|>", "<s>"), name)
        self.eos_id = _first_of(table, ("<|endoftext|>", "</s>"), name)
        self.pad_id = table.get("<pad>", self.eos_id)
        self.pieces = [b""] * (max(table.values()) + 1)
        special = {"<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", *added}
        byte_of = {char: byte for byte, char in byte_characters().items()}
        for piece, i in table.items():
            if piece not in special:
                self.pieces[i] = bytes(map(byte_of.get, piece, [0] * len(piece)))
        missing = [byte for byte, char in byte_characters().items() if char not in table]
        if missing:
            raise UserError(
                f"{name} is not a byte-level vocabulary: it lacks {len(missing)} of "
                f"the 256 bytes (the first is 0x{missing[0]:02X}), so some text would "
                "be lost. Use the two files of a tokenizer in the style of GPT-2."
            )
        try:
            self._bpe = RustTokenizer(models.BPE(vocab=table, merges=pairs))
        except Exception as e:  # the Rust library raises plain Exception
            raise UserError(
                f"{name}: the merges do not fit the vocabulary ({e}). Check that both "
                "files come from the same tokenizer."
            ) from None
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.fingerprint = hash_of("bpe", vocab, merges)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(texts)]

    def files(self) -> dict[str, bytes]:
        return {"vocab.json": self._vocab, "merges.txt": self._merges}


@functools.cache
def byte_characters() -> dict[int, str]:
    """Byte -> the printable character for it in GPT-2's files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def build(options: Config, training: Training) -> ByteLevelBpe:
    """The tokenizer of options.path; it cannot be trained."""
    del training
    return read_bpe_folder(options.path)


def load(folder: Any) -> ByteLevelBpe:
    """The tokenizer of a folder that Tokenizer.save wrote."""
    return read_bpe_folder(folder)


def read_bpe_folder(folder: Any) -> ByteLevelBpe:
    """The BPE of a folder with two files, of GPT-2's or Hugging Face's names.

    Raises UserError if one is missing, unreadable, or not byte-level.
    """
    return ByteLevelBpe(*read_bpe_files(folder), str(folder))


def read_bpe_files(folder: Any) -> tuple[bytes, bytes]:
    """The content of a folder's vocabulary and merges. Raises UserError if one is missing."""
    from etils import epath

    if not str(folder):
        raise UserError(
            'data.tokenizer.kind is "bpe" or "whisper" but data.tokenizer.path is empty. Set it to '
            "a folder with vocab.json (or encoder.json) and merges.txt (or vocab.bpe)."
        )
    root = epath.Path(folder)
    paths = []
    for names in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        present = [root / name for name in names if (root / name).exists()]
        if not present:
            raise UserError(
                f"data.tokenizer.path={folder}: found neither {names[0]} nor "
                f"{names[1]} there. A GPT-2 style tokenizer folder has one of each: "
                "vocab.json or encoder.json, and merges.txt or vocab.bpe."
            )
        paths.append(present[0])
    vocab = read_text(paths[0], "a JSON object of piece: id")
    merges = read_text(paths[1], "a text file with a merge on each line")
    return vocab.encode(), merges.encode()


def _plain(text: bytes) -> bytes:
    return re.sub(rb"\r+\n", b"\n", text.removeprefix(codecs.BOM_UTF8))


def _read_bpe(vocab: bytes, merges: bytes, name: str) -> tuple[dict, list]:
    try:
        table = json.loads(vocab)
        lines = merges.decode().split("\n")
        pairs = [
            tuple(line.rstrip(" ").split(" "))
            for line in lines
            if line.strip() and not line.startswith("#version")
        ]
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{name}: cannot read the vocabulary or the merges ({e}). The first has to "
            "be a JSON object of piece: id, the second UTF-8 text."
        ) from None
    check_pieces(table, name)
    if any(len(pair) != 2 for pair in pairs):
        bad = next(pair for pair in pairs if len(pair) != 2)
        raise UserError(
            f"{name}: a merge has to be two pieces with a space between; found {' '.join(bad)!r}."
        )
    return table, pairs


def _first_of(table: dict[str, int], names: tuple[str, ...], name: str) -> int:
    for piece in names:
        if piece in table:
            return table[piece]
    raise UserError(
        f"{name}: the vocabulary has none of {', '.join(names)}, so documents could "
        "not be distinguished. Add one to the vocabulary file with the next free id."
    )
