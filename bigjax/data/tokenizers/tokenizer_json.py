"""tokenizer.json of Hugging Face, of any model type, by the `tokenizers` library.

Llama 3, Qwen, Gemma, Phi, OLMo, Pythia and most other open models publish one. The files beside it
name the ids of bos, eos and pad.
"""

from collections.abc import Iterable, Mapping, Sequence
import copy
import functools
import itertools
import json
import re
from typing import Any

import numpy as np

from bigjax.data.tokenizers import Config
from bigjax.data.tokenizers.base import (
    TEMPLATE,
    Tokenizer,
    Training,
    check_utf8,
    hash_of,
    read_bytes,
)
from bigjax.data.tokenizers.bpe import byte_characters
from bigjax.errors import UserError
from bigjax.json_text import added_tokens, is_id, shown, special_ids

FILE = "tokenizer.json"
SETTINGS, SPECIALS = "tokenizer_config.json", "special_tokens_map.json"
GENERATION = "generation_config.json"
TEMPLATES = "additional_chat_templates"
_ROLES = {  # the names of each in tokenizer_config.json, the first one first
    "bos": ("bos_token", "cls_token"),
    "eos": ("eos_token", "sep_token"),
    "pad": ("pad_token",),
}
_NAMED = (  # the keys of all special tokens there
    *(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")),
    *("additional_special_tokens", "extra_special_tokens"),
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
_SPACE = "\u2581"  # SentencePiece writes a space as this character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = "  Ünï\u0301 ﬁ\n\n\tx \u2028 中 \U0001f600\x00 \r\n\u2581 "


class TokenizerJson(Tokenizer):
    """The tokenizer of a tokenizer.json and the files beside it.

    Its ids are those of the library, and so of transformers without special tokens, with one
    exception: the text of a special token is text. Added tokens that are not special are parts of
    texts, as in the library.

    bos, eos and pad are those of tokenizer_config.json, else of special_tokens_map.json, else of
    generation_config.json (where `read_files` puts those of config.json). Without them bos and pad
    are eos. A text follows `leading_ids`, which the post-processor, and so transformers, puts
    before it: bos (Llama 3, Gemma), or none (Qwen, Pythia). unk_id: that of the model in
    tokenizer.json.

    Attributes: `special`: {text: id} of the special tokens. `role_tokens`: the texts of those of
    bos, eos and pad that are named. `end_ids`: eos and the others of a list in
    generation_config.json. `chat_templates`: {name: template}, 'default' the main one, {} without
    one.
    """

    kind = "tokenizer_json"

    def __init__(self, files: Mapping[str, bytes], name: str = "the tokenizer") -> None:
        """files: {name: content} of tokenizer.json and what is there of tokenizer_config.json,
        special_tokens_map.json, generation_config.json and the chat templates.

        Raises UserError, with `name` in it, for files that are damaged or contradict each other, a
        tokenizer.json that the library does not read, and without an eos."""
        self._files, self.name = dict(files), name
        content = _object(files, FILE, name)
        settings = _object(files, SETTINGS, name)
        self._rust = rust = _rust_tokenizer(files[FILE], name)
        _check_ids(rust, added_tokens(content, f"{name}: {FILE}"), f"{name}: {FILE}")
        _add_tokens(rust, settings, name)
        named = [settings, _object(files, SPECIALS, name)]
        generation = _object(files, GENERATION, name)
        ids = _roles(rust, named, generation, name)
        _mark_special(rust, named, ids.values())
        self.eos_id = ids["eos"]
        self.bos_id, self.pad_id = (ids.get(role, self.eos_id) for role in ("bos", "pad"))
        added = rust.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in added.items() if token.special}
        self.role_tokens = {f"{role}_token": rust.id_to_token(i) for role, i in ids.items()}
        ends = generation.get("eos_token_id")
        known = [i for i in (ends if isinstance(ends, list) else []) if is_id(i)]
        known = [i for i in known if rust.id_to_token(i) is not None]
        self.end_ids = tuple(dict.fromkeys([self.eos_id, *known]))
        model = content.get("model") or {}
        unk_id = _unk_id(rust, model)
        self.unk_id = None if unk_id in (self.bos_id, self.eos_id) else unk_id
        rust.encode_special_tokens = True  # the library's word for: as text
        reads, self._n_leading = _decoding(content.get("decoder"))
        self._joins = reads is not None
        vocab = rust.get_vocab()
        self.pieces = [b""] * (max(vocab.values()) + 1)
        hidden = {*self.special.values(), unk_id}
        for piece, i in vocab.items():
            if i not in hidden:
                self.pieces[i] = (reads or _other_piece)(piece, i in added)
        self._spelled = _spelled(rust, {*self.special.values()} - {unk_id}, unk_id)
        self.leading_ids = _leading_ids(rust)
        self.chat_templates = _chat_templates(files, settings, name)
        in_documents = (self.leading_ids, self.eos_id, sorted(self.special))
        self.fingerprint = hash_of("tokenizer_json", files[FILE], repr(in_documents))
        self.lossless = self._joins and self._restores(_PROBE)

    def encode_with_specials(self, text: str) -> np.ndarray:
        """The ids of a text in which the texts of special tokens are these tokens, int32 [n].

        For prompts that a program writes, such as those of a chat template. No leading ids are
        added. Raises as `encode_batch`.
        """
        (text,) = check_utf8([text])
        return np.array(self._parser.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _parser(self) -> Any:
        parser = copy.deepcopy(self._rust)
        parser.encode_special_tokens = False
        return parser

    def encode_parts(
        self, rows: Sequence[Sequence[str | int]], cuts: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As Tokenizer.encode_parts. Ids are those of `encode_with_specials` for the text that the
        special tokens are written in, except where another part has the text of one."""
        del cuts
        parser, own = self._parts_parser
        texts, places = [], []
        for row in rows:
            check_utf8([part for part in row if isinstance(part, str)])
            written = [part if isinstance(part, str) else _unique(part) for part in row]
            sizes = [len(part) if isinstance(part, str) else 1 for part in row]
            starts = np.cumsum([0, *sizes])
            place = [
                start + (np.arange(len(text)) if size == len(text) else np.zeros(len(text)))
                for start, size, text in zip(starts, sizes, written)
            ]
            texts.append("".join(written))
            places.append(np.concatenate([*place, starts[-1:]]).astype(np.int64))
        out = []
        for encoding, place in zip(parser.encode_batch(texts, add_special_tokens=False), places):
            ids, spans = [], []
            for i, (start, end) in zip(encoding.ids, encoding.offsets):
                new = [own[i]] if i in own else self._spelled.get(i, [i])
                ids += new
                start = min(start, len(place) - 2)
                spans += [(place[start], place[max(end - 1, start)] + 1)] * len(new)
            out.append((np.array(ids, np.int32), np.array(spans, np.int64).reshape(-1, 2)))
        return out

    @functools.cached_property
    def _parts_parser(self) -> tuple[Any, dict[int, int]]:
        """(the tokenizer with one more token for each special one, {its id: that of the special
        one}). They have the texts of `_unique`, while the texts of special tokens are text."""
        from tokenizers import AddedToken, processors

        parser = copy.deepcopy(self._rust)
        parser.encode_special_tokens = True
        # The post-processor of bytes would take spaces out of the offsets.
        parser.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        own = {}
        for i, token in self._rust.get_added_tokens_decoder().items():
            if token.special:
                flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip")}
                parser.add_tokens(
                    [AddedToken(_unique(i), normalized=False, special=False, **flags)]
                )
                own[parser.token_to_id(_unique(i))] = i
        return parser, own

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        try:
            encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as e:  # such as a word that a model without an unknown token lacks
            raise UserError(f"{self.name} cannot encode a text ({e}). Use another one.") from None
        encoded = [encoding.ids for encoding in encodings]
        if not (odd := self._spelled.keys()):
            return encoded
        spelled = lambda ids: [x for i in ids for x in self._spelled.get(i, (i,))]
        return [ids if odd.isdisjoint(ids) else spelled(ids) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """As Tokenizer.decode, without the space that the tokenizer puts before a text. Decoders
        that do more than join the pieces, such as that of WordPiece, follow their own rules."""
        if not self._joins:
            known = [i for i in map(int, ids) if 0 <= i < self.vocab_size and self.pieces[i]]
            return self._rust.decode(known, skip_special_tokens=True)
        text = super().decode(ids)
        n = len(text) - len(text.lstrip(" ")) if self._n_leading else 0
        return text[min(n, self._n_leading) :]

    def _restores(self, text: str) -> bool:
        try:
            return self.decode(self.encode(text)) == text
        except UserError:
            return False

    def files(self) -> dict[str, bytes]:
        return self._files


def build(options: Config, training: Training) -> TokenizerJson:
    """The tokenizer of options.path; it cannot be trained."""
    if not options.path:
        raise UserError(
            'data.tokenizer.kind is "tokenizer_json" but data.tokenizer.path is empty. Set it to a '
            "folder with tokenizer.json and tokenizer_config.json, or to a tokenizer.json."
        )
    tokenizer = load(options.path)
    if not tokenizer.lossless:
        training.log(
            f"note: {options.path} does not keep every text (it normalises, lacks some characters, "
            "or reads U+2581 as a space); byte counts are those of its pieces"
        )
    return tokenizer


def load(path: Any) -> TokenizerJson:
    """The tokenizer of a Hugging Face folder, of the tokenizer.json in one, or of a folder that
    Tokenizer.save wrote. May be on gs://. Raises UserError if it is missing, and as TokenizerJson.
    """
    return TokenizerJson(read_files(path), str(path))


def read_files(path: Any) -> dict[str, bytes]:
    """{name: content} for TokenizerJson of a folder or its tokenizer.json."""
    from etils import epath

    root = epath.Path(path).expanduser()
    file = root / FILE if root.is_dir() else root
    if not file.exists():
        raise UserError(
            f"data.tokenizer.path={path}: {file} does not exist. It has to be a tokenizer.json, or "
            "a folder with one, as transformers' save_pretrained writes it."
        )
    folder, files = file.parent, {FILE: read_bytes(file, "a tokenizer.json of Hugging Face")}
    names = [
        name for name in (SETTINGS, SPECIALS, GENERATION, TEMPLATE) if (folder / name).exists()
    ]
    if (folder / TEMPLATES).is_dir():
        inner = sorted(p.name for p in (folder / TEMPLATES).iterdir() if p.suffix == ".jinja")
        names += [f"{TEMPLATES}/{name}" for name in inner]
    files |= {name: read_bytes(folder / name, "a file of the tokenizer") for name in names}
    if (folder / "config.json").exists():
        config = {"config.json": read_bytes(folder / "config.json", "a model's config")}
        generation = _object(files, GENERATION, str(folder))
        ids = special_ids(_object(config, "config.json", str(folder)))
        if ids and "eos_token_id" not in generation:
            files[GENERATION] = json.dumps({**ids, **generation}).encode()
    return files


def _unique(i: int) -> str:
    """A text for a special token that no other text has: U+FDD0 to U+FDEF are no characters."""
    return f"\ufdd0{i}\ufdd1"


def _object(files: Mapping[str, bytes], file: str, name: str) -> dict:
    """The JSON object in one of the files, {} without it."""
    try:
        content = json.loads(files.get(file, b"{}").decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{name}: {file} is not JSON ({e}). Copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{name}: {file} holds {shown(content)}; it must be a JSON object. Copy it again."
        )
    return content


def _rust_tokenizer(content: bytes, name: str) -> Any:
    from tokenizers import Tokenizer as RustTokenizer

    try:
        rust = RustTokenizer.from_str(content.decode("utf-8-sig"))
    except Exception as e:  # the Rust library raises plain Exception
        raise UserError(
            f"{name}: the library `tokenizers` does not read {FILE} ({e}). It is damaged, or was "
            "written by a newer version: copy it again, or install that version."
        ) from None
    rust.no_truncation()
    rust.no_padding()
    if getattr(rust.model, "dropout", None):
        rust.model.dropout = None  # the same text has the same ids
    return rust


def _check_ids(rust: Any, ids: Mapping[str, int], where: str) -> None:
    """Raises UserError for added tokens that the library has put elsewhere."""
    for text, i in ids.items():
        if (own := rust.token_to_id(text)) != i:
            raise UserError(
                f"{where}: the added token {text!r} has the id {i}, but the library gives it "
                f"{own}: the ids of added tokens have to follow those of the model's vocab without "
                "a gap. Restore the file."
            )


def _add_tokens(rust: Any, settings: dict, name: str) -> None:
    """Adds the tokens of tokenizer_config.json, as transformers does. Most are there already."""
    from tokenizers import AddedToken

    table = settings.get("added_tokens_decoder")
    ids: dict[str, int] = {}
    new = []
    for i, row in table.items() if isinstance(table, dict) else ():
        if not i.isdigit() or not isinstance(row, dict) or not isinstance(row.get("content"), str):
            raise UserError(
                f"{name}: {SETTINGS} has {shown({i: row})} in added_tokens_decoder, which must be "
                'like {"3": {"content": "<s>", "special": true}}. Restore the file.'
            )
        flags = {flag: row[flag] for flag in _FLAGS if isinstance(row.get(flag), bool)}
        ids[row["content"]] = int(i)
        new.append(AddedToken(row["content"], **{"normalized": False, **flags}))
    rust.add_tokens(sorted(new, key=lambda token: ids[token.content]))
    _check_ids(rust, ids, f"{name}: {SETTINGS}")


def _roles(rust: Any, named: list[dict], generation: dict, name: str) -> dict[str, int]:
    """The ids of those of bos, eos and pad that are named."""
    n, ids = rust.get_vocab_size(), {}
    for role, keys in _ROLES.items():
        texts = [t for key in keys for content in named for t in _texts(content.get(key))]
        known = [rust.token_to_id(text) for text in texts]
        given = generation.get(f"{role}_token_id")
        given = given[0] if isinstance(given, list) and given else given
        if known and known[0] is None and role == "eos":
            raise UserError(
                f"{name}: eos_token is {texts[0]!r}, which {FILE} lacks. Correct it in {SETTINGS}."
            )
        if known and known[0] is not None:
            ids[role] = known[0]
        elif is_id(given) and rust.id_to_token(given) is not None:
            ids[role] = given
        elif given is not None and role == "eos":
            raise UserError(
                f"{name}: eos_token_id is {shown(given)}, but {FILE} has {n:,} tokens. Set "
                f'"eos_token" in {SETTINGS} to the text of its end token.'
            )
    if "eos" not in ids:
        special = [t.content for t in rust.get_added_tokens_decoder().values() if t.special]
        raise UserError(
            f"{name}: no file names the token that ends a text. Add a {SETTINGS} with "
            f'{{"eos_token": TEXT}} beside {FILE}; its special tokens are '
            f"{', '.join(special[:8]) or 'none'}."
        )
    return ids


def _texts(value: Any) -> list[str]:
    """The texts of a special token, or of a list of them, in a JSON file."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    text = value.get("content") if isinstance(value, dict) else value
    return [text] if isinstance(text, str) else []


def _mark_special(rust: Any, named: list[dict], ids: Iterable[int]) -> None:
    """Makes the tokens with a name in tokenizer_config.json special, as transformers does, and
    `ids`."""
    from tokenizers import AddedToken

    texts = [text for content in named for key in _NAMED for text in _texts(content.get(key))]
    texts += map(rust.id_to_token, ids)
    added = {token.content: token for token in rust.get_added_tokens_decoder().values()}
    new = [added.get(text, AddedToken(text, normalized=False)) for text in texts]
    rust.add_special_tokens([t for t in new if rust.token_to_id(t.content) is not None])


def _unk_id(rust: Any, model: dict) -> int | None:
    if model.get("type") == "Unigram":
        return model.get("unk_id")
    text = model.get("unk_token")
    return rust.token_to_id(text) if isinstance(text, str) else None


def _decoding(decoder: Any) -> tuple[Any, int]:
    """(piece, whether it is an added token) -> its bytes, and how many spaces at the start of a
    text are dropped; None for a decoder that does more than join the pieces."""
    steps = _flat(decoder)
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        byte_of = {char: byte for byte, char in byte_characters().items()}
        return functools.partial(_byte_level, byte_of=byte_of), 0
    n_leading, done = 0, set()
    for step in steps:
        kind, content = step.get("type"), step.get("content")
        if kind == "Metaspace" and step.get("replacement", _SPACE) == _SPACE:
            scheme = step.get("prepend_scheme", step.get("add_prefix_space", True))
            n_leading += scheme not in ("never", False)
        elif kind == "Strip" and content == " " and not step.get("stop") and "Fuse" in done:
            n_leading += step.get("start", 0)
        elif kind == "Replace" and (step.get("pattern"), content) == ({"String": _SPACE}, " "):
            pass
        elif kind not in ("ByteFallback", "Fuse"):
            return None, 0
        done.add(kind)
    if not done & {"Metaspace", "Replace"}:
        return None, 0
    return functools.partial(_spaced, has_bytes="ByteFallback" in done), n_leading


def _flat(step: Any) -> list[dict]:
    """The steps of a Sequence, a single one as a list, [] for none."""
    if not isinstance(step, dict) or step.get("type") != "Sequence":
        return [step] if isinstance(step, dict) else []
    return [x for inner in step.get("decoders", []) for x in _flat(inner)]


def _byte_level(piece: str, is_added: bool, byte_of: Mapping[str, int]) -> bytes:
    if is_added or not byte_of.keys() >= {*piece}:
        return piece.encode()
    return bytes(byte_of[char] for char in piece)


def _spaced(piece: str, is_added: bool, has_bytes: bool) -> bytes:
    del is_added
    if has_bytes and (byte := _BYTE.fullmatch(piece)):
        return bytes.fromhex(byte[1])
    return piece.replace(_SPACE, " ").encode()


def _other_piece(piece: str, is_added: bool) -> bytes:
    text = piece if is_added or piece == "##" else piece.removeprefix("##")
    return text.replace(_SPACE, " ").encode()


def _spelled(rust: Any, special: set[int], unk_id: int | None) -> dict[int, list[int]]:
    """{id: ids of its letters} of special tokens that the model would find in a text by itself."""

    def tokenize(piece: str) -> list[int]:
        try:
            return [token.id for token in rust.model.tokenize(piece)]
        except Exception:  # of a model without an unknown token
            return []

    spelled = {}
    for i in special:
        piece = rust.id_to_token(i)
        if tokenize(piece) == [i]:
            letters = [n for char in piece for n in tokenize(char)]
            unknown = [] if unk_id is None else [unk_id]
            spelled[i] = [x for n in letters for x in (unknown if n in special else [n])]
    return spelled


def _leading_ids(rust: Any) -> tuple[int, ...]:
    """The special tokens that the post-processor puts before a text. transformers 5 follows it too,
    whatever add_bos_token in tokenizer_config.json says."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models

    text = RustTokenizer(models.WordLevel({"text": 0}, "text")).encode("text")
    encoding = rust.post_process(text)
    pairs = zip(encoding.ids, encoding.special_tokens_mask)
    return tuple(i for i, _ in itertools.takewhile(lambda pair: pair[1], pairs))


def _chat_templates(files: Mapping[str, bytes], settings: dict, name: str) -> dict[str, str]:
    given = settings.get("chat_template")
    out = {"default": given} if isinstance(given, str) else {}
    for row in given if isinstance(given, list) else ():
        if isinstance(row, dict) and {"name", "template"} <= row.keys():
            out[row["name"]] = row["template"]
    for file, content in files.items():
        if file == TEMPLATE or file.startswith(f"{TEMPLATES}/"):
            key = "default" if file == TEMPLATE else file.split("/")[-1].removesuffix(".jinja")
            try:
                out[key] = content.decode()
            except UnicodeDecodeError as e:
                raise UserError(f"{name}: {file} is not UTF-8 ({e}). Copy it again.") from None
    return out
