"""Easy data augmentation: texts with a few words changed (https://arxiv.org/abs/1901.11196).

A text is a list of words or of token ids. Each operation is a pure function of a text and a
numpy Generator, returns a new list, and never an empty one for a text that is not empty.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import os
from typing import TypeVar

import numpy as np

from bigjax.data.word_vectors import numbered_lines
from bigjax.errors import UserError

T = TypeVar("T")
# Replacements of an item: from a thesaurus, or such as the neighbours of word vectors.
Synonyms = Mapping[T, Sequence[T]] | Callable[[T], Sequence[T]]
_RATES = ("replace", "insert", "swap", "delete")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Called as (items, rng) -> a text changed by one of the four operations, drawn at random.

    Args:
      synonyms: the replacements of an item; None only if replace and insert are 0.
      stop: items that are not replaced, and of which no synonym is inserted.
      replace, insert, swap: how many of n items: rate * n rounded down, at least 1.
      delete: the probability of each item. An operation of rate 0 is never drawn.

    The paper uses .05 for all rates with up to about 2,000 training texts, and .1 with more.
    Raises UserError for a rate outside [0, 1), for rates that are all 0, and without synonyms.
    """

    synonyms: Synonyms | None
    stop: Collection = frozenset()
    replace: float = 0.1
    insert: float = 0.1
    swap: float = 0.1
    delete: float = 0.1

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in _RATES}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise UserError(
                    f"augmentation's rate {name} is {rate}; it has to be at least 0 "
                    "and below 1. The paper uses 0.05 to 0.1."
                )
        if not any(rates.values()):
            raise UserError(
                "augmentation's rates replace, insert, swap and delete are all 0. Set "
                "one above 0, or leave augmentation out."
            )
        if self.synonyms is None and (self.replace or self.insert):
            raise UserError(
                "augmentation has no synonyms to replace or insert. Give a thesaurus "
                "or word vectors, or set the rates replace and insert to 0."
            )

    def __call__(self, items: Sequence[T], rng: np.random.Generator) -> list[T]:
        name = rng.choice([name for name in _RATES if getattr(self, name)])
        rate = getattr(self, name)
        n = max(1, int(rate * len(items)))
        if name == "replace":
            return replace_synonyms(items, rng, n, self.synonyms, self.stop)
        if name == "insert":
            return insert_synonyms(items, rng, n, self.synonyms, self.stop)
        return swap_items(items, rng, n) if name == "swap" else delete_items(items, rng, rate)


def replace_synonyms(
    items: Sequence[T],
    rng: np.random.Generator,
    n: int,
    synonyms: Synonyms,
    stop: Collection[T] = frozenset(),
) -> list[T]:
    """Replaces n items by a random synonym, or all items with synonyms if there are fewer."""
    replaced, left = list(items), n
    for i in rng.permutation(len(items)):
        if left and (others := _synonyms(items[i], synonyms, stop)):
            replaced[i] = _pick(others, rng)
            left -= 1
    return replaced


def insert_synonyms(
    items: Sequence[T],
    rng: np.random.Generator,
    n: int,
    synonyms: Synonyms,
    stop: Collection[T] = frozenset(),
) -> list[T]:
    """Inserts a synonym of a random item at a random position, n times."""
    choices = [others for item in items if (others := _synonyms(item, synonyms, stop))]
    extended = list(items)
    for _ in range(n if choices else 0):
        extended.insert(rng.integers(len(extended) + 1), _pick(_pick(choices, rng), rng))
    return extended


def swap_items(items: Sequence[T], rng: np.random.Generator, n: int) -> list[T]:
    """Swaps two random items, n times."""
    swapped = list(items)
    for _ in range(n if len(swapped) > 1 else 0):
        i, j = rng.choice(len(swapped), 2, replace=False)
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


def delete_items(items: Sequence[T], rng: np.random.Generator, rate: float) -> list[T]:
    """Leaves each item out with probability `rate`; if none would be left, keeps a random one."""
    keep = rng.random(len(items)) >= rate
    if len(items) and not keep.any():
        keep[rng.integers(len(items))] = True
    return [item for item, kept in zip(items, keep) if kept]


def read_thesaurus(path: str | os.PathLike) -> dict[str, list[str]]:
    """word -> its synonyms, from a file with one group of synonyms per line.

    They are separated by tabs, or in a line without tabs by commas. A word in several groups has
    the synonyms of all. Blank lines are skipped. Raises UserError, with file and line, for a
    group of fewer than two words, an empty word, and a file that cannot be read or has no group.
    """
    thesaurus: dict[str, dict[str, None]] = {}  # dicts for sets that keep their order
    for where, line in numbered_lines(path, "a thesaurus: one group of synonyms per line"):
        if not line.strip(" \t"):
            continue
        group = [word.strip(" ") for word in line.split("\t" if "\t" in line else ",")]
        if len(set(group)) < 2 or not all(group):
            raise UserError(
                f"{where}: found {line[:60]!r}. A line has to be two or more different "
                "words, none empty, with tabs or commas between. Correct it, or take "
                "it out."
            )
        for word in group:
            thesaurus.setdefault(word, {}).update((other, None) for other in group if other != word)
    if not thesaurus:
        raise UserError(f"{path} has no group of synonyms. Give a file with at least one line.")
    return {word: list(others) for word, others in thesaurus.items()}


def _synonyms(item: T, synonyms: Synonyms, stop: Collection[T]) -> list[T]:
    if item in stop:
        return []
    others = synonyms(item) if callable(synonyms) else synonyms.get(item, ())
    return [other for other in others if other != item]


def _pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    # Not rng.choice, which would return NumPy's strings and numbers.
    return choices[rng.integers(len(choices))]
