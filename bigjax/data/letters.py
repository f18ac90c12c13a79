"""A set without files: letters to be sorted. Small models learn it in a minute, and no rule but
that of the alphabet decides whether an answer is right."""

import itertools
from typing import Any

from bigjax.data.store import split_of

SORT = "letters:sort"
_ALPHABET, _N = "abcdefgh", 4


def rows(valid_fraction: float, test_fraction: float) -> list[dict[str, Any]]:
    """All orders of 4 of 8 letters: "question", such as 'Sort: dbca', its "answer", "where" and
    "part", the split of this question."""
    out = []
    for letters in itertools.permutations(_ALPHABET, _N):
        question = f"Sort: {''.join(letters)}"
        out.append(
            {
                "question": question,
                "answer": "".join(sorted(letters)),
                "where": f"{SORT} {''.join(letters)}",
                "part": split_of(question, valid_fraction, test_fraction),
            }
        )
    return out


def conversations(valid_fraction: float, test_fraction: float) -> list[dict[str, Any]]:
    """`rows` as conversations of a question and its answer."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ],
            "tools": None,
            **{key: row[key] for key in ("where", "part")},
        }
        for row in rows(valid_fraction, test_fraction)
    ]
