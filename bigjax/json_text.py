"""Standard JSON, which has no NaN and infinity, and checks of JSON read from tokenizer files."""

from collections.abc import Mapping
import json
import math
from typing import Any

from bigjax.errors import UserError

MAX_ID = (1 << 24) - 1  # largest token id; tables are allocated up to it


def dumps(value: Any, *, spell: bool = False, **options) -> str:
    """JSON text of a value. Non-finite numbers become null, or with `spell` 'nan' and 'inf'.

    options: arguments of json.dumps, such as indent.
    """
    return json.dumps(finite(value, spell), allow_nan=False, **options)


def finite(value: Any, spell: bool = False) -> Any:
    """The value with None (or with `spell` text) for non-finite numbers, in dicts and lists too."""
    if isinstance(value, float):  # NumPy's float64 too
        return value if math.isfinite(value) else str(float(value)) if spell else None
    if isinstance(value, dict):
        return {k: finite(v, spell) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v, spell) for v in value]
    return value


def count_non_finite(value: Any) -> int:
    """How many numbers of a value `dumps` would write as null."""
    if isinstance(value, float):
        return int(not math.isfinite(value))
    inner = value.values() if isinstance(value, dict) else value
    return sum(map(count_non_finite, inner)) if isinstance(value, (dict, list, tuple)) else 0


# --- Tokenizer files ---------------------------------------------------------------------------


def is_id(value: Any) -> bool:
    """Whether a value is a valid token id: an integer from 0 to MAX_ID."""
    return type(value) is int and 0 <= value <= MAX_ID


def check_pieces(table: Any, where: Any) -> dict[str, int]:
    """Returns `table` if it is a vocabulary, {piece: id}; else raises UserError, naming `where`."""
    if not isinstance(table, dict):
        raise UserError(
            f"{where}: the vocabulary is {shown(table)}; it must be a JSON object {{piece: id}}. "
            "Restore the tokenizer file."
        )
    piece_of: dict[int, str] = {}
    for piece, i in table.items():
        if not is_id(i):
            raise UserError(
                f"{where}: the id of the piece {shown(piece)} is {shown(i)}; it must be an integer "
                f"from 0 to {MAX_ID:,}. Restore the tokenizer file."
            )
        if i in piece_of:
            raise UserError(
                f"{where}: the pieces {shown(piece_of[i])} and {shown(piece)} have the same id "
                f"{i}. Restore the tokenizer file."
            )
        if any("\ud800" <= char <= "\udfff" for char in piece):
            raise UserError(
                f"{where}: the piece {shown(piece)} has a lone surrogate, which has no UTF-8 form. "
                "Restore the tokenizer file."
            )
        piece_of[i] = piece
    return table


def added_tokens(content: dict, where: Any) -> dict[str, int]:
    """{text: id} of the added_tokens in a tokenizer.json. Raises UserError if malformed."""
    tokens = content.get("added_tokens")
    tokens = [] if tokens is None else tokens
    for token in tokens if isinstance(tokens, list) else [tokens]:
        is_token = isinstance(token, dict) and isinstance(token.get("content"), str)
        if not isinstance(tokens, list) or not is_token or not is_id(token.get("id")):
            raise UserError(
                f"{where}: found {shown(token)} in added_tokens, which must be a list of objects "
                'such as {"content": "[SEP]", "id": 3}. Restore the tokenizer file.'
            )
    return {token["content"]: token["id"] for token in tokens}


def special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model's config.json that generation_config.json has too: bos_token_id,
    eos_token_id (which may be a list) and pad_token_id."""
    inner = config.get("text_config")
    both = {**config, **(inner if isinstance(inner, dict) else {})}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: both[key] for key in keys if both.get(key) is not None}


def shown(value: Any) -> str:
    """A value for a message, truncated to 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
