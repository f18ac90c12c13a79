"""WordPiece as in BERT (Devlin et al. 2018): words, split into pieces if they are rare."""

import collections
from collections.abc import Iterable, Sequence
import functools
import json
from typing import Any

import numpy as np

from bigjax.data.text_files import read_lines, read_text
from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import Tokenizer, Training, check_utf8, hash_of
from bigjax.errors import UserError
from bigjax.json_text import added_tokens, check_pieces, shown

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_CHARS = 100  # a longer word becomes [UNK], as in BERT
_CONTINUES = "##"
_TRAIN_FORMAT = 1  # raise it when the same text would train another vocabulary
_BATCH = 1024  # texts with offsets per call: the library's own objects for them are large


class WordPiece(Tokenizer):
    """BERT's tokenizer: spaces and case are lost (not `lossless`), rare characters become [UNK].

    Attributes: `bos_id` is [CLS], `eos_id` [SEP], `pad_id` [PAD], besides `mask_id` and `unk_id`;
    `lowercase`; `is_continuation` bool [vocab], the '##' pieces; `is_special` bool [vocab], the
    five above; `pieces` as in Tokenizer, without the '##'.
    """

    kind = "wordpiece"
    lossless = False

    def __init__(
        self,
        vocab: Sequence[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese_chars: bool = True,
        name: str = "the vocabulary",
    ) -> None:
        """`vocab[i]` is the piece of id i.

        `strip_accents` None is what `lowercase` is; `chinese_chars` makes each a word of its own.
        Raises UserError, with `name` in it, for a repeated piece or without the five specials.
        """
        self._vocab, self.name = list(vocab), name
        table = _table(self._vocab, name)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = (
            table[piece] for piece in SPECIALS
        )
        self.lowercase = bool(lowercase)
        self._settings = {
            "do_lower_case": self.lowercase,
            "strip_accents": self.lowercase if strip_accents is None else bool(strip_accents),
            "tokenize_chinese_chars": bool(chinese_chars),
        }
        self.is_special = np.isin(np.arange(len(table)), [table[piece] for piece in SPECIALS])
        self.is_continuation = np.array([_continues(piece) for piece in self._vocab])
        self.pieces = [
            b""
            if special
            else piece.removeprefix(_CONTINUES).encode()
            if _continues(piece)
            else piece.encode()
            for piece, special in zip(self._vocab, self.is_special)
        ]
        self._rust = _rust_tokenizer(table, self._settings)
        self.fingerprint = hash_of("wordpiece", "\n".join(self._vocab), json.dumps(self._settings))

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its ids int32 [n], and the characters [start, end) of each, int32 [n, 2].

        They index the original text: text[start:end] has its case and accents (but a combining
        accent at the end of a piece belongs to no id). Raises as `encode_batch`.
        """
        texts = check_utf8(texts)
        encoded = []
        for i in range(0, len(texts), _BATCH):
            for encoding in self._rust.encode_batch(
                texts[i : i + _BATCH], add_special_tokens=False
            ):
                encoded.append(
                    (
                        np.array(encoding.ids, np.int32),
                        np.array(encoding.offsets, np.int32).reshape(-1, 2),
                    )
                )
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Words separated by spaces, with '##' pieces appended to the piece before them.

        Special ids ([UNK] too) and ids outside the vocabulary are skipped.
        """
        words: list[str] = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size or self.is_special[i]:
                continue
            piece = self.pieces[i].decode()
            if words and self.is_continuation[i]:
                words[-1] += piece
            else:
                words.append(piece)
        return " ".join(words)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in self._rust.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def files(self) -> dict[str, bytes]:
        return {
            "vocab.txt": "".join(f"{piece}\n" for piece in self._vocab).encode(),
            "tokenizer_config.json": json.dumps(self._settings, indent=1).encode(),
        }


def build(options: Config, training: Training) -> WordPiece:
    """The vocabulary of options.path, or one that is trained."""
    if not options.path:
        path = training.cached(
            f"wordpiece {_TRAIN_FORMAT} {options.vocab_size} {options.lowercase}",
            ".vocab.txt",
            f"a WordPiece vocabulary of {options.vocab_size:,}",
            lambda texts: train_wordpiece(texts, options.vocab_size, options.lowercase).files()[
                "vocab.txt"
            ],
        )
        return read_wordpiece(path, options.lowercase)
    tokenizer = read_wordpiece(options.path, options.lowercase)
    if tokenizer.lowercase and any(piece != piece.lower() for piece in tokenizer.pieces):
        training.log(
            f"note: {options.path} has pieces with capitals that lower-cased text never reaches; "
            "is it a cased vocabulary? Then set data.tokenizer.lowercase=False"
        )
    return tokenizer


def load(folder: Any) -> WordPiece:
    """The tokenizer of a folder that Tokenizer.save wrote."""
    return read_wordpiece(folder)


def read_wordpiece(path: Any, lowercase: bool = True) -> WordPiece:
    """The tokenizer of `path`, which may be on gs://.

    - a file: vocab.txt of a BERT, one piece per line, cased or not as `lowercase` says;
    - a folder with vocab.txt and optionally tokenizer_config.json, whose do_lower_case,
      strip_accents and tokenize_chinese_chars override `lowercase` (`Tokenizer.save` writes one);
    - a folder with only tokenizer.json of Hugging Face, of WordPiece and BERT's normaliser.

    Raises UserError for anything else, for text that is not UTF-8, and as WordPiece does.
    """
    from etils import epath

    root = epath.Path(path).expanduser()
    if not root.is_dir():
        return WordPiece(_vocab_lines(root), lowercase, name=str(root))
    if (root / "vocab.txt").exists():
        path, settings = root / "tokenizer_config.json", {}
        if path.exists():
            settings = _json_object(path)
        return WordPiece(
            _vocab_lines(root / "vocab.txt"),
            _flag(settings, "do_lower_case", lowercase, path),
            _flag(settings, "strip_accents", None, path),
            _flag(settings, "tokenize_chinese_chars", True, path),
            str(root / "vocab.txt"),
        )
    if (root / "tokenizer.json").exists():
        return _from_tokenizer_json(root / "tokenizer.json")
    raise UserError(
        f"data.tokenizer.path={path}: found neither vocab.txt nor tokenizer.json in "
        'that folder. A tokenizer of kind "wordpiece" has one of them.'
    )


def train_wordpiece(documents: Iterable[str], vocab_size: int, lowercase: bool = True) -> WordPiece:
    """Trains a vocabulary of `vocab_size` pieces; the same documents give the same one.

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then letters and pieces. Rare characters
    are left out ([UNK]) if letters would fill more than half of it and pieces need the space.
    Raises UserError if the text is too small for `vocab_size`.
    """
    texts = check_utf8(list(documents))
    rust = _rust_tokenizer(
        {"[UNK]": 0},
        {"do_lower_case": lowercase, "strip_accents": lowercase, "tokenize_chinese_chars": True},
    )
    counts = collections.Counter()
    for text in texts:
        counts.update(rust.normalizer.normalize_str(text))
    letters = set(_trained(rust, texts, 0, [], [], 1 << 30))
    room = max(0, vocab_size - len(SPECIALS))
    vocab = _train(rust, texts, vocab_size, _common(letters, counts, room // 2))
    if len(vocab) < vocab_size:  # more letters than that, and too few words to fill the rest
        n_letters = room // 2 + vocab_size - len(vocab)
        vocab = _train(rust, texts, vocab_size, _common(letters, counts, n_letters))
    if len(vocab) != vocab_size or room < 2:
        reason = (
            f"that much text makes at most {len(vocab):,} pieces"
            if room >= 2
            else f"{len(SPECIALS)} special pieces leave no room for letters"
        )
        raise UserError(
            f"cannot train a WordPiece vocabulary of data.tokenizer.vocab_size={vocab_size} on "
            f"{len(texts):,} documents with {sum(map(len, texts)):,} characters: {reason}. Change "
            "vocab_size, give more text, or set data.tokenizer.path to a BERT's vocab.txt."
        )
    return WordPiece(vocab, lowercase)


def _train(rust: Any, texts: list[str], vocab_size: int, letters: list[str]) -> list[str]:
    # The library numbers the '##' letters in the order of a hash table that differs in each
    # process, and that decides between equally common pairs. Given as special they have theirs.
    inner = [piece for piece in letters if _continues(piece)]
    first = [piece for piece in letters if not _continues(piece)]
    return _trained(rust, texts, vocab_size, [*SPECIALS, *inner], first, len(first))


def _trained(
    rust: Any,
    texts: list[str],
    vocab_size: int,
    special: list[str],
    letters: list[str],
    max_letters: int,
) -> list[str]:
    """The pieces that the library's trainer finds, in the order of their ids."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import trainers

    if not texts:
        return special
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=letters,
        limit_alphabet=max_letters,
    )
    learner = RustTokenizer.from_str(rust.to_str())
    learner.train_from_iterator(iter(texts), trainer)
    vocab = learner.get_vocab()
    return sorted(vocab, key=vocab.get)


def _common(letters: set[str], counts: collections.Counter, room: int) -> list[str]:
    """The pieces of the most common letters, sorted, at most `room`: 'a', and '##a' if it is."""
    kept: list[str] = []
    for letter in sorted(set(counts) & letters, key=lambda letter: (-counts[letter], letter)):
        forms = [letter] + ([_CONTINUES + letter] if _CONTINUES + letter in letters else [])
        if len(kept) + len(forms) > room:
            break
        kept += forms
    return sorted(kept)


def _continues(piece: str) -> bool:
    return piece.startswith(_CONTINUES) and piece != _CONTINUES


def _table(vocab: list[str], name: str) -> dict[str, int]:
    table: dict[str, int] = {}
    for i, piece in enumerate(vocab):
        if piece in table:
            raise UserError(
                f"{name}: {piece!r} is there twice, in lines {table[piece] + 1} and "
                f"{i + 1}. Each line has to be a piece of its own, its number the id: "
                "restore the original file."
            )
        table[piece] = i
    missing = [piece for piece in SPECIALS if piece not in table]
    if missing:
        raise UserError(
            f"{name} has no {', '.join(missing)} among its {len(table):,} lines. A "
            f"WordPiece vocabulary has {', '.join(SPECIALS)} and a piece on each "
            "line: set data.tokenizer.path to the vocab.txt of a BERT."
        )
    return table


def _rust_tokenizer(table: dict[str, int], settings: dict[str, bool]) -> Any:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, normalizers, pre_tokenizers

    rust = RustTokenizer(
        models.WordPiece(vocab=table, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS)
    )
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    # It splits at brackets, so that '[SEP]' in a text is three pieces and never the special one.
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return rust


def _vocab_lines(path: Any) -> list[str]:
    return read_lines(path, "a vocab.txt (UTF-8, a piece on each line), or a folder with one")


def _json_object(path: Any) -> dict:
    try:
        content = json.loads(read_text(path, "a JSON object"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e}). Restore the file of the tokenizer.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; it has to be an object.")
    return content


def _from_tokenizer_json(path: Any) -> WordPiece:
    content = _json_object(path)
    part = functools.partial(_part, content, path)
    model, normalizer = part("model"), part("normalizer")
    for value, expected in (
        (model.get("type", "WordPiece"), "WordPiece"),
        (normalizer.get("type"), "BertNormalizer"),
        (part("pre_tokenizer").get("type"), "BertPreTokenizer"),
        (model.get("continuing_subword_prefix", _CONTINUES), _CONTINUES),
        (model.get("max_input_chars_per_word", 100), MAX_WORD_CHARS),
        (normalizer.get("clean_text", True), True),
    ):
        if value != expected:
            raise UserError(
                f"{path}: not a BERT tokenizer: found {shown(value)} where {expected!r} is "
                'expected. data.tokenizer.kind="wordpiece" reads BERT\'s only.'
            )
    table = model.get("vocab")
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a BERT tokenizer: its model has no vocab of piece: id.")
    table = check_pieces(table | added_tokens(content, path), path)
    if sorted(table.values()) != list(range(len(table))):
        raise UserError(
            f"{path}: the ids of its {len(table):,} pieces are not 0 to "
            f"{len(table) - 1}. Restore the file of the tokenizer."
        )
    return WordPiece(
        sorted(table, key=table.get),
        _flag(normalizer, "lowercase", True, path),
        _flag(normalizer, "strip_accents", None, path),
        _flag(normalizer, "handle_chinese_chars", True, path),
        str(path),
    )


def _flag(settings: dict, key: str, default: bool | None, path: Any) -> bool | None:
    """A setting that is true, false, or null, which means absent."""
    value = settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(
            f"{path}: {key} is {shown(value)}; it has to be true, false or null, without quotes. "
            "Correct it."
        )
    return default if value is None else value


def _part(content: dict, path: Any, key: str) -> dict:
    if not isinstance(content.get(key), dict):
        raise UserError(
            f"{path}: not a BERT tokenizer: it has no {key}. "
            'data.tokenizer.kind="wordpiece" reads tokenizer.json of WordPiece models.'
        )
    return content[key]
