"""The tokenizer files of a Hugging Face folder: detecting their kind, and writing ours as such."""

from collections.abc import Mapping
import functools
import json
import pathlib
import re
from typing import Any

from bigjax.errors import UserError
from bigjax.interop import images, t5_tokenizer
from bigjax.json_text import added_tokens, check_pieces, shown, special_ids

# An import keeps these unchanged for a later export. The last ones do not belong to the tokenizer.
FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    t5_tokenizer.FILE,
    "source.spm",  # the next three: of Marian
    "target.spm",
    "target_vocab.json",
    "added_tokens.json",
    "normalizer.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
    images.FILE,
)
CHAT_TEMPLATES = "additional_chat_templates"  # a folder of more .jinja files, kept too
TOKENIZER_JSON = "tokenizer_json"  # the kind for what no other one does exactly
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_BPE_SPECIALS = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>")


def read(folder: pathlib.Path) -> dict[str, bytes]:
    """{name: content} of the FILES that the folder has, and of its chat templates."""
    inner = sorted(p.name for p in (folder / CHAT_TEMPLATES).glob("*.jinja"))
    names = [*FILES, *(f"{CHAT_TEMPLATES}/{name}" for name in inner)]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def kind(files: dict[str, bytes]) -> str:
    """'wordpiece', 'bpe', 'whisper', 'sentencepiece'; 'tokenizer_json' if none of these does
    exactly what tokenizer.json says, or a chat template is with it; or '' if bigjax reads none of
    the files."""
    other = _simpler_kind(files)
    if other == "whisper" or "tokenizer.json" not in files:
        return other
    if _fits(other, files) and not _has_chat_template(files):
        return other
    return other if _refusal(files["tokenizer.json"]) else TOKENIZER_JSON


def _has_chat_template(files: dict[str, bytes]) -> bool:
    """Whether there is one, with whose special tokens no simpler kind deals."""
    return "chat_template.jinja" in files or bool(
        _object(files, "tokenizer_config.json").get("chat_template")
    )


def _simpler_kind(files: dict[str, bytes]) -> str:
    if "tokenizer.model" in files or t5_tokenizer.FILE in files:
        return "sentencepiece"
    if "vocab.txt" in files:
        return "wordpiece"
    content = _content(files)
    if "vocab.json" in files and "merges.txt" in files:
        return "" if _has_own_words(files, content) else _byte_level(files)
    model_type = _part(content, "model").get("type")
    if model_type == "WordPiece":
        return "wordpiece"
    if t5_tokenizer.is_t5(content):
        return "sentencepiece"
    return _byte_level(files) if model_type == "BPE" and _is_gpt2(content) else ""


def _has_own_words(files: dict[str, bytes], content: dict) -> bool:
    """Whether byte-level BPE splits text into other words than that of GPT-2, as in Qwen or Phi-4.
    content: of tokenizer.json."""
    if _part(content, "model").get("type") == "BPE":
        return not _is_gpt2(content)
    about = _object(files, "tokenizer_config.json")
    return str(about.get("tokenizer_class", "")).startswith("Qwen2")


def _byte_level(files: dict[str, bytes]) -> str:
    """'whisper' if the files name its start token, else 'bpe'."""
    start, names = b"<|startoftranscript|>", ("added_tokens.json", "tokenizer.json", "vocab.json")
    return "whisper" if any(start in files.get(name, b"") for name in names) else "bpe"


def _fits(other: str, files: dict[str, bytes]) -> bool:
    """Whether the tokenizer of this kind does what tokenizer.json says."""
    if other == "wordpiece":
        return "vocab.txt" in files or _is_bert(_content(files))
    if other == "sentencepiece":
        return "tokenizer.model" not in files or _has_all_tokens(files)
    if other != "bpe":
        return False
    content, eos = _content(files), _eos(files)
    return not _part(content, "model") or (
        _is_gpt2(content)
        and all(token.get("special", True) for token in _added_rows(content))
        and (eos is None or eos in _BPE_SPECIALS)
    )


def _has_all_tokens(files: dict[str, bytes]) -> bool:
    """Whether tokenizer.model has the end token, and all added tokens that are parts of texts."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    except RuntimeError:  # such as a file of tiktoken
        return False
    n, eos = model.get_piece_size(), _eos(files)
    return not any(
        token["id"] >= n and (not token.get("special", True) or token["content"] == eos)
        for token in _added_rows(_content(files))
        if not t5_tokenizer.is_sentinel(token["content"])
    )


def _eos(files: dict[str, bytes]) -> str | None:
    """eos_token of tokenizer_config.json."""
    token = _object(files, "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _added_rows(content: dict) -> list[dict]:
    added_tokens(content, "tokenizer.json")  # raises UserError if malformed
    return content.get("added_tokens") or []


@functools.lru_cache(1)
def _refusal(content: bytes) -> str:
    """Why the `tokenizers` library does not read a tokenizer.json; '' if it does."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(content)
    except Exception as e:  # the Rust library raises plain Exception
        return str(e)
    return ""


def unread(files: dict[str, bytes]) -> str:
    """Why bigjax reads no tokenizer from files whose kind is '', and what to do."""
    if "source.spm" in files:
        reason = (
            "The tokenizer of Marian has a SentencePiece model for each side and ids of its own "
            "(source.spm, target.spm, vocab.json), which bigjax does not support; its files are "
            "kept."
        )
    elif "tokenizer.json" in files:
        reason = (
            "The library `tokenizers` does not read this tokenizer.json "
            f"({_refusal(files['tokenizer.json'])}), a newer version of it may; the tokenizer's "
            "files are kept. If the model was published with a SentencePiece model (spiece.model, "
            "tokenizer.model), copy that into the folder too."
        )
    else:
        reason = "The folder has no tokenizer that bigjax supports; its files, if any, are kept."
    return (
        f"{reason} To evaluate or generate, import again, into a new work folder, with "
        "--config.data.tokenizer.kind=KIND and --config.data.tokenizer.path=PATH of a tokenizer "
        "with the model's ids. A run that starts from this one by init_from sets its own."
    )


def derived(
    files: dict[str, bytes], config: Mapping[str, Any] = {}, as_kind: str = ""
) -> dict[str, bytes]:
    """Files that the folder lacks: vocab.json and merges.txt of a GPT-2 tokenizer.json, of Whisper
    also what else its tokenizer reads; tokenizer.model and sentinels.json of T5's files; of another
    tokenizer.json the ids that only config.json names, as generation_config.json.

    config: the content of config.json. as_kind: instead of `kind`.
    """
    ours = as_kind or kind(files)
    if ours == "sentencepiece":
        return t5_tokenizer.derived(files, {name: _object(files, name) for name in _JSON})
    if ours == TOKENIZER_JSON:
        name, ids = "generation_config.json", special_ids(config)
        generation = _object(files, name)
        if "eos_token_id" in generation or not ids:
            return {}
        return {**_of_tokenizer_json(files), name: json.dumps({**ids, **generation}).encode()}
    if ours not in ("bpe", "whisper") or "vocab.json" in files and "merges.txt" in files:
        return {}
    content = _content(files)
    model, added = content["model"], added_tokens(content, "tokenizer.json")
    vocab = dict(check_pieces(model.get("vocab"), "tokenizer.json"))
    vocab |= {text: i for text, i in added.items() if text in _BPE_SPECIALS}
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else [merges]:
        of_strings = isinstance(merge, list) and all(isinstance(part, str) for part in merge)
        if not isinstance(merges, list) or not isinstance(merge, str) and not of_strings:
            raise UserError(
                f"tokenizer.json: the model's merges contain {shown(merge)}; they must be a list "
                'of strings such as "t h", or of pairs of strings. Restore the file.'
            )
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    others = {}
    if ours == "whisper":
        others = {name: files[name] for name in ("generation_config.json",) if name in files}
        others["added_tokens.json"] = json.dumps(added, ensure_ascii=False).encode()
    return {
        **others,
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": "".join(f"{line}\n" for line in ["#version: 0.2", *pairs]).encode(),
    }


def written(
    kind: str,
    own: dict[str, bytes],
    ids: dict[str, int],
    max_len: int | None,
    n_sentinels: int = 0,
    ends: bool = False,
) -> dict[str, bytes]:
    """The files of our tokenizer for transformers; {} for one that it does not have, as of bytes.

    own: the files that the tokenizer saves. ids: of 'bos', 'eos' and 'pad'. max_len: of the
    model; None without one. n_sentinels: of the tokenizer. ends: texts end with eos, without a
    bos, as those of encoder-decoders.
    """
    names = {
        "wordpiece": ("vocab.txt",),
        "bpe": ("vocab.json", "merges.txt"),
        "whisper": ("vocab.json", "merges.txt", "added_tokens.json"),
        "sentencepiece": ("tokenizer.model",),
    }
    config: dict = {"model_max_length": max_len} if max_len else {}
    if kind == TOKENIZER_JSON:
        named = _named(own, {**_object(own, "tokenizer_config.json"), **config}, ids)
        files = {**_of_tokenizer_json(own), "tokenizer_config.json": named}
        if "generation_config.json" in files:  # the rest of it is of another model
            of_tokenizer = special_ids(_object(own, "generation_config.json"))
            files["generation_config.json"] = _text(of_tokenizer)
        return files
    if kind not in names:
        return {}
    if kind == "wordpiece":
        config |= {
            "tokenizer_class": "BertTokenizer",
            **_object(own, "tokenizer_config.json"),
        }
    elif kind in ("bpe", "whisper"):
        added = _object(own, "added_tokens.json") if kind == "whisper" else {}
        vocab = check_pieces({**_object(own, "vocab.json"), **added}, "vocab.json")
        text_of = {i: piece for piece, i in vocab.items()}
        if missing := sorted(set(ids.values()) - set(text_of)):
            raise UserError(
                f"vocab.json has no piece with id {missing[0]}, which the run's tokenizer uses. "
                "Restore the tokenizer's files from the run."
            )
        config |= {
            "tokenizer_class": "WhisperTokenizer" if added else "GPT2Tokenizer",
            "add_prefix_space": False,
            "unk_token": text_of[ids["eos"]],
            **{f"{role}_token": text_of[i] for role, i in ids.items()},
            **({"add_bos_token": False, "add_eos_token": True} if ends else {}),
        }
        if added:
            config["added_tokens_decoder"] = {str(i): _added(t) for t, i in added.items()}
    elif ends:
        return t5_tokenizer.written(own["tokenizer.model"], ids, n_sentinels, config)
    else:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_proto=own["tokenizer.model"])
        prefix = model.encode("a", out_type=str)[0].startswith("\u2581")
        config |= {
            "tokenizer_class": "LlamaTokenizer",
            "add_prefix_space": prefix,
            "unk_token": model.id_to_piece(model.unk_id()),
            **{f"{role}_token": model.id_to_piece(i) for role, i in ids.items()},
        }
    settings = ("generation_config.json",) if kind == "whisper" else ("chat_template.jinja",)
    kept = {n: own[n] for n in (*names[kind], *settings) if n in own or n in names[kind]}
    return {**kept, "tokenizer_config.json": _text(config)}


def _text(config: dict) -> bytes:
    return f"{json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)}\n".encode()


def _of_tokenizer_json(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that belong to a tokenizer.json."""
    names = (*_JSON, "chat_template.jinja", "generation_config.json")
    return {n: x for n, x in files.items() if n in names or n.startswith(f"{CHAT_TEMPLATES}/")}


def _named(own: dict[str, bytes], config: dict, ids: dict[str, int]) -> bytes:
    """tokenizer_config.json with the special tokens of `ids` that no file of the tokenizer names.
    bos and pad that are eos stand for none."""
    vocab, special = _vocab(_content(own)), _object(own, "special_tokens_map.json")
    text_of = {i: text for text, i in vocab.items()}
    for role, i in ids.items():
        key = f"{role}_token"
        if (role == "eos" or i != ids["eos"]) and not (config.get(key) or special.get(key)):
            config[key] = text_of[i]
    return _text({"tokenizer_class": "PreTrainedTokenizerFast", **config})


def _vocab(content: dict) -> dict[str, int]:
    """{piece: id} of a tokenizer.json that the library reads."""
    vocab = _part(content, "model").get("vocab")
    rows = vocab if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab or ())}
    return {**rows, **added_tokens(content, "tokenizer.json")}


def _added(text: str) -> dict[str, Any]:
    """An added token, in the form of transformers. Timestamps are not special there."""
    off = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **off, "special": not re.fullmatch(r"<\|\d+\.\d\d\|>", text)}


def _is_bert(content: dict) -> bool:
    """Whether a tokenizer.json of WordPiece splits and normalises text as BERT does."""
    model, before = _part(content, "model"), _part(content, "normalizer")
    return (
        before.get("type") == "BertNormalizer"
        and before.get("clean_text", True) is True
        and _part(content, "pre_tokenizer").get("type") == "BertPreTokenizer"
        and model.get("continuing_subword_prefix", "##") == "##"
        and model.get("max_input_chars_per_word", 100) == 100
        and all(token.get("special", True) for token in _added_rows(content))
    )


def _is_gpt2(content: dict) -> bool:
    """Whether text is split into words as in GPT-2, without any normalisation before."""
    before = _part(content, "pre_tokenizer")
    return (
        not content.get("normalizer")
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex", True)
        and not _part(content, "model").get("ignore_merges")
    )


def _content(files: dict[str, bytes]) -> dict:
    return _object(files, "tokenizer.json")


def _object(files: dict[str, bytes], name: str) -> dict:
    """The JSON object in one of `files`; {} for any other value, or if the file is missing."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{name} is not JSON ({e}). Copy it again.") from None
    return content if isinstance(content, dict) else {}


def _part(content: dict, key: str) -> dict:
    return content[key] if isinstance(content.get(key), dict) else {}
