"""SentencePiece tokenizers with sentinels: files of transformers' T5Tokenizer, and ours as such.

A folder of T5 has `spiece.model`; one that transformers 5 saved only `tokenizer.json`, from which
the SentencePiece model is built again. Sentinels, '<extra_id_0>' and so on, are in neither: their
ids follow those of the model, the first sentinel last.
"""

import base64
import json
import math
import re
from typing import Any

from bigjax.errors import UserError
from bigjax.json_text import added_tokens, shown

FILE, OURS = "spiece.model", "tokenizer.model"
SENTINELS = "sentinels.json"  # as of data/tokenizers/sentencepiece.py
_CLASSES = (None, "T5Tokenizer", "T5TokenizerFast")
_NAME = re.compile(r"<extra_id_(\d+)>")
_SPACE = "\u2581"  # SentencePiece writes a space as this character
_TEXT_OF = {"pad_token": "<pad>", "eos_token": "</s>"}


def is_t5(content: dict) -> bool:
    """Whether a tokenizer.json does what a SentencePiece model with T5's settings does.

    That is: NFKC or another table of characters, runs of spaces are one, a space before the text,
    and Unigram without bytes.
    """
    model = _part(content, "model")
    before = _flat(_part(content, "pre_tokenizer"), "pretokenizers")
    changes = _flat(_part(content, "normalizer"), "normalizers")
    types = [step.get("type") for step in before]
    spaces = [step for step in before if step.get("type") == "Metaspace"]
    charsmaps = [step for step in changes if step.get("type") == "Precompiled"]
    others = [step for step in changes if step.get("type") not in ("Precompiled", "Strip")]
    joined = [step for step in others if _joins_spaces(step)]
    tokens = content.get("added_tokens") or []
    return (
        model.get("type") == "Unigram"
        and not model.get("byte_fallback")
        and set(types) <= {"WhitespaceSplit", "Metaspace"}
        and len(spaces) == 1
        and _adds_a_space(spaces[0])
        and len(charsmaps) <= 1
        and others == joined
        and ("WhitespaceSplit" in types or bool(joined))
        and isinstance(tokens, list)
        and all(not isinstance(token, dict) or bool(token.get("special")) for token in tokens)
    )


def derived(files: dict[str, bytes], contents: dict[str, dict]) -> dict[str, bytes]:
    """Our files for those of a folder; {} if it has them.

    contents: the JSON objects in its files. Raises UserError, naming the file, if they contradict
    each other.
    """
    if OURS in files:
        n = sentinels(contents, default=0)
        out = {OURS: files[OURS]} if n else {}
    elif FILE in files:
        t5 = contents["tokenizer_config.json"].get("tokenizer_class") in _CLASSES
        out, n = {OURS: files[FILE]}, sentinels(contents, default=100 if t5 else 0)
    else:
        pieces, n = _pieces(contents["tokenizer.json"])
        if sentinels(contents, default=n) != n:
            raise UserError(
                f"tokenizer.json has {n} sentinels <extra_id_...>, but tokenizer_config.json "
                f"{sentinels(contents, n)}. Restore the files."
            )
        out = {OURS: _model(pieces, contents)}
    return {**out, **({SENTINELS: f"{n}\n".encode()} if n else {})}


def sentinels(contents: dict[str, dict], default: int) -> int:
    """The number of sentinels that tokenizer_config.json and special_tokens_map.json name."""
    config = contents["tokenizer_config.json"]
    lists = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    lists.append(contents["special_tokens_map.json"].get("additional_special_tokens"))
    names = {_text(name) for some in lists if isinstance(some, list) for name in some}
    numbers = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    n = config.get("extra_ids", len(numbers) or default)
    if type(n) is not int or n < 0 or numbers and numbers != list(range(n)):
        raise UserError(
            f"tokenizer_config.json: extra_ids is {n!r}, and the special tokens have "
            f"{len(numbers)} names from <extra_id_{numbers[0] if numbers else ''}>; there must be "
            "one for each number below extra_ids. Restore the tokenizer's files."
        )
    return n


def is_sentinel(text: str) -> bool:
    return bool(_NAME.fullmatch(text))


def written(
    model: bytes, ids: dict[str, int], n_sentinels: int, config: dict[str, Any]
) -> dict[str, bytes]:
    """The files of a SentencePiece model for an encoder-decoder, whose texts end with eos.

    config: of tokenizer_config.json. {} for a model whose ids no class of transformers gives.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    names = [f"<extra_id_{i}>" for i in range(n_sentinels - 1, -1, -1)]
    config = {**config, **{f"{role}_token": proto.pieces[i].piece for role, i in ids.items()}}
    config["unk_token"] = proto.pieces[trainer.unk_id].piece
    if trainer.model_type == trainer.BPE:
        added = {"additional_special_tokens": names} if names else {}
        config |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": _prefix(proto)}
        config |= {"add_bos_token": False, "add_eos_token": True, **added}
        return {OURS: model, "tokenizer_config.json": _json(config)}
    fixed = trainer.unk_id == 2 and config["eos_token"] == "</s>"  # in the code of T5Tokenizer
    spaces = normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces
    if trainer.model_type != trainer.UNIGRAM or trainer.byte_fallback or not (fixed and spaces):
        return {}
    config |= {"tokenizer_class": "T5Tokenizer", "extra_ids": n_sentinels}
    config.pop("bos_token", None)  # T5 has none
    return {FILE: model, "tokenizer_config.json": _json(config)}


def _prefix(proto) -> bool:
    return bool(proto.normalizer_spec.add_dummy_prefix)


def _json(config: dict) -> bytes:
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def _pieces(content: dict) -> tuple[list[tuple[str, float]], int]:
    """((piece, score) of each id without sentinels, the number of sentinels) of tokenizer.json."""
    vocab = _part(content, "model").get("vocab")
    for row in vocab if isinstance(vocab, list) else [vocab]:
        right = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
        if not right or type(row[1]) not in (int, float) or not math.isfinite(row[1]):
            raise UserError(
                f"tokenizer.json: the model's vocab contains {shown(row)}; it must be a list of "
                '["piece", score]. Restore the file.'
            )
    pieces = [(piece, float(score)) for piece, score in vocab if not _NAME.fullmatch(piece)]
    ids = {row[0]: i for i, row in enumerate(vocab)} | added_tokens(content, "tokenizer.json")
    sentinels = {name: i for name, i in ids.items() if _NAME.fullmatch(name)}
    names = [f"<extra_id_{i}>" for i in range(len(sentinels) - 1, -1, -1)]
    if sentinels != {name: len(pieces) + i for i, name in enumerate(names)}:
        raise UserError(
            "tokenizer.json: the sentinels <extra_id_...> do not follow the other pieces of the "
            "model's vocab, <extra_id_0> last. Restore the file, or copy spiece.model beside it."
        )
    return pieces, len(sentinels)


def _model(pieces: list[tuple[str, float]], contents: dict[str, dict]) -> bytes:
    """The SentencePiece model of a tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2

    content, config = contents["tokenizer.json"], contents["tokenizer_config.json"]
    proto = sentencepiece_model_pb2.ModelProto()
    kinds, trainer = proto.SentencePiece, proto.trainer_spec
    unk = _part(content, "model").get("unk_id")
    if type(unk) is not int or not 0 <= unk < len(pieces):
        raise UserError(
            f"tokenizer.json: unk_id is {shown(unk)}; it must be the id of a piece, below "
            f"{len(pieces)}. Restore the file."
        )
    special = added_tokens(content, "tokenizer.json")
    for i, (piece, score) in enumerate(pieces):
        kind = kinds.UNKNOWN if i == unk else kinds.CONTROL if piece in special else kinds.NORMAL
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer.model_type, trainer.vocab_size = trainer.UNIGRAM, len(pieces)
    id_of = {piece: i for i, (piece, _) in enumerate(pieces)}
    texts = {key: _text(config.get(key) or name) for key, name in _TEXT_OF.items()}
    trainer.unk_id, trainer.unk_piece, trainer.bos_id = unk, pieces[unk][0], -1
    trainer.pad_piece, trainer.eos_piece = texts["pad_token"], texts["eos_token"]
    trainer.pad_id = id_of.get(trainer.pad_piece, -1)
    trainer.eos_id = id_of.get(trainer.eos_piece, -1)
    proto.normalizer_spec.name = "from tokenizer.json"
    for step in _flat(_part(content, "normalizer"), "normalizers"):
        if step.get("type") == "Precompiled":
            proto.normalizer_spec.precompiled_charsmap = _decoded(step.get("precompiled_charsmap"))
    return proto.SerializeToString(deterministic=True)


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (ValueError, TypeError) as e:
        raise UserError(
            f"tokenizer.json: precompiled_charsmap is not base64 ({e}). Restore the file."
        ) from None


def _adds_a_space(step: dict) -> bool:
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "")
    return scheme == "always" and step.get("replacement", _SPACE) == _SPACE


def _joins_spaces(step: dict) -> bool:
    pattern = step.get("pattern")
    runs = isinstance(pattern, dict) and pattern.get("Regex") == " {2,}"
    return step.get("type") == "Replace" and runs and step.get("content") in (" ", _SPACE)


def _text(token: Any) -> str:
    """The text of a special token in a JSON file, a string or an object."""
    return str(token.get("content") if isinstance(token, dict) else token)


def _part(content: dict, key: str) -> dict:
    return content[key] if isinstance(content.get(key), dict) else {}


def _flat(step: dict, key: str) -> list[dict]:
    """The steps of a Sequence; a single one as a list; [] for none."""
    if step.get("type") != "Sequence":
        return [step] if step else []
    inner = step.get(key)
    steps = inner if isinstance(inner, list) else []
    return [x if isinstance(x, dict) else {"type": shown(x)} for x in steps]
