"""Augmentation: what each operation may change, and what it never does."""

import collections
import dataclasses

import numpy as np
import pytest

from bigjax.data import augment
from bigjax.errors import UserError

TEXT = "the quick dog saw the big cat and ran home".split()
THESAURUS = {"quick": ["fast", "rapid"], "big": ["large"], "ran": ["ran", "fled"], "the": ["a"]}
STOP = {"the", "and"}


def rngs(n=200):
    return [np.random.default_rng(i) for i in range(n)]


def test_replaces_n_words_that_are_not_stop_words():
    seen = collections.Counter()
    for rng in rngs():
        words = augment.replace_synonyms(TEXT, rng, 2, THESAURUS, STOP)
        changed = [(a, b) for a, b in zip(TEXT, words, strict=True) if a != b]
        assert len(changed) == 2 and all(b in THESAURUS[a] for a, b in changed)
        seen.update(changed)
    assert set(seen) == {("quick", "fast"), ("quick", "rapid"), ("big", "large"), ("ran", "fled")}
    many = augment.replace_synonyms(TEXT, rngs(1)[0], 9, THESAURUS)
    assert sum(a != b for a, b in zip(TEXT, many)) == 5


def test_inserts_n_synonyms_in_any_place():
    positions, inserted = set(), set()
    for rng in rngs():
        words = augment.insert_synonyms(TEXT, rng, 1, THESAURUS, STOP)
        position = next((i for i, word in enumerate(TEXT) if words[i] != word), len(TEXT))
        assert words[:position] + words[position + 1 :] == TEXT
        positions.add(position)
        inserted.add(words[position])
    assert positions == set(range(len(TEXT) + 1))
    assert inserted == {"fast", "rapid", "large", "fled"}
    assert len(augment.insert_synonyms(TEXT, rng, 3, THESAURUS)) == len(TEXT) + 3


def test_swaps_two_places():
    items = list(range(10))
    for rng in rngs(50):
        swapped = augment.swap_items(items, rng, 1)
        assert sorted(swapped) == items and sum(a != b for a, b in zip(items, swapped)) == 2


def test_deletes_at_the_rate_and_never_all():
    items = list(range(1000))
    kept = augment.delete_items(items, np.random.default_rng(0), 0.1)
    assert 850 < len(kept) < 950 and kept == sorted(kept)
    left = [augment.delete_items([1, 2, 3], rng, 0.99) for rng in rngs()]
    counts = collections.Counter(item for one in left for item in one)
    assert all(left) and min(counts[item] for item in (1, 2, 3)) > 40


def test_synonyms_may_be_a_function_and_items_ids():
    ids = augment.replace_synonyms([1, 2, 3], rngs(1)[0], 3, lambda i: [10 * i] * (i > 1), {3})
    assert ids == [1, 20, 3] and all(type(item) is int for item in ids)


def test_one_operation_at_its_rate():
    text = [f"w{i}" for i in range(40)]
    augmentation = augment.Augment(
        lambda word: [word.upper()], replace=0.1, insert=0.05, swap=0.01, delete=0.2
    )
    lengths = collections.Counter()
    for rng in rngs():
        augmented = augmentation(text, rng)
        upper = [word for word in augmented if word[0] == "W"]
        if len(augmented) == 40 and upper:
            lengths["replace"] += 1
            assert len(upper) == 4
        elif len(augmented) == 42:
            lengths["insert"] += 1
            assert len(upper) == 2
        elif len(augmented) == 40 and augmented != text:
            lengths["swap"] += 1
            assert sum(a != b for a, b in zip(text, augmented)) == 2
        else:
            lengths["delete"] += 1
            assert not upper and len(augmented) < 40
    assert set(lengths) == {"replace", "insert", "swap", "delete"}
    assert min(lengths.values()) > 30


def test_rate_0_is_never_drawn_and_the_same_generator_gives_the_same():
    swap = augment.Augment(None, replace=0, insert=0, delete=0)
    assert all(sorted(swap(TEXT, rng)) == sorted(TEXT) for rng in rngs(50))
    everything = augment.Augment(THESAURUS, STOP)
    assert [everything(TEXT, r) for r in rngs()] == [everything(TEXT, r) for r in rngs()]


def test_short_texts():
    everything = augment.Augment(THESAURUS, STOP)
    for rng in rngs(50):
        assert everything([], rng) == []
        assert everything(["the"], rng) == ["the"]
        assert everything(["big"], rng)


def test_rates_and_synonyms_are_checked():
    with pytest.raises(UserError, match="rate swap is 1"):
        augment.Augment(THESAURUS, swap=1)
    with pytest.raises(UserError, match="no synonyms"):
        augment.Augment(None, insert=0)
    with pytest.raises(UserError, match="all 0"):
        augment.Augment(None, replace=0, insert=0, swap=0, delete=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        augment.Augment(THESAURUS).swap = 0


def test_thesaurus_file(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_bytes("\ufeffbig, large,huge\r\n\nbig\tgreat, grand\n北京\t京城\n".encode())
    assert augment.read_thesaurus(path) == {
        "big": ["large", "huge", "great, grand"],
        "large": ["big", "huge"],
        "huge": ["big", "large"],
        "great, grand": ["big"],
        "北京": ["京城"],
        "京城": ["北京"],
    }


@pytest.mark.parametrize(
    "content, message",
    [
        (b"big,large\nalone\n", r"synonyms.txt:2: found 'alone'"),
        (b"same, same\n", r"synonyms.txt:1: found"),
        (b"big,,large\n", r"synonyms.txt:1: found"),
        (b"a,b\nc,\xff\n", r"synonyms.txt:2: byte 2 \(0xFF\) is not UTF-8"),
        (b"\n", "has no group"),
    ],
)
def test_bad_thesaurus_files(tmp_path, content, message):
    path = tmp_path / "synonyms.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        augment.read_thesaurus(path)
    with pytest.raises(UserError, match="cannot read"):
        augment.read_thesaurus(tmp_path / "absent.txt")
