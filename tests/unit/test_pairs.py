"""bigjax.data.pairs: pairs of texts with masks."""

import dataclasses

import numpy as np
import pytest

from bigjax.data import masking, pairs
from bigjax.data.store import build_store
from bigjax.data.tokenizers.wordpiece import train_wordpiece
from bigjax.errors import UserError
from tests.conftest import WORDS

# --- Pairs -----------------------------------------------------------------------------------

OPTIONS = pairs.Options(
    pairs="nsp",
    mask_rate=0.15,
    mask_unit="token",
    max_predictions=8,
    dynamic=True,
    short_fraction=0.1,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" . ".join(WORDS)] * 3, 120)


@pytest.fixture(scope="module")
def stream(tokenizer, tmp_path_factory):
    """80 documents; the words of document d are all the d-th, so each token tells its document
    (modulo the number of words), and positions count sentences."""
    texts = [
        " . ".join([" ".join([WORDS[d % len(WORDS)]] * (3 + i % 4)) for i in range(2 + 2 * d)])
        for d in range(len(WORDS))
    ]
    return build_store(
        lambda counts: iter(texts), "x", tokenizer, 0.0, 0.0, str(tmp_path_factory.mktemp("store"))
    ).split("train")


def make(stream, tokenizer, shuffle=True, batch_size=16, seed=0, **changes):
    return pairs.PairBatches(
        {"s": stream},
        tokenizer,
        64,
        batch_size,
        seed,
        shuffle,
        {"s": 1.0},
        dataclasses.replace(OPTIONS, **changes),
    )


def parts(batch, row, tokenizer):
    """The words of the two parts, unmasked."""
    tokens = batch["tokens"][row].copy()
    real = batch["weights"][row] > 0
    tokens[batch["masked_positions"][row, real]] = batch["targets"][row, real]
    out = []
    for t in (0, 1):
        mine = (batch["types"][row] == t) & (batch["segment_ids"][row] > 0)
        out.append([i for i in tokens[mine] if not tokenizer.is_special[i]])
    return out, tokens


def test_layout_of_a_row(stream, tokenizer):
    batch = make(stream, tokenizer).batch_at(0)
    assert {k: v.shape for k, v in batch.items()} == {
        "tokens": (16, 64),
        "types": (16, 64),
        "segment_ids": (16, 64),
        "masked_positions": (16, 8),
        "targets": (16, 8),
        "weights": (16, 8),
        "next_label": (16, 1),
        "next_weight": (16, 1),
    }
    for row in range(16):
        (a, b), tokens = parts(batch, row, tokenizer)
        n = int(batch["segment_ids"][row].sum())
        want = [tokenizer.bos_id, *a, tokenizer.eos_id, *b, tokenizer.eos_id]
        assert a and b and list(tokens[:n]) == want
        assert (tokens[n:] == tokenizer.pad_id).all() and n <= 64
    assert not tokenizer.is_special[batch["targets"][batch["weights"] > 0]].any()


def test_the_label_says_whether_both_parts_are_of_one_document(stream, tokenizer):
    data, full_stop = make(stream, tokenizer, batch_size=32), tokenizer.encode(".")[0]
    labels = []
    for step in range(8):
        batch = data.batch_at(step)
        for row in range(32):
            (a, b), _ = parts(batch, row, tokenizer)
            words = [set(p) - {full_stop} for p in (a, b)]
            if all(words):
                assert (words[0] != words[1]) == batch["next_label"][row, 0]
        labels += batch["next_label"][:, 0].tolist()
    assert 0.4 < np.mean(labels) < 0.6


def test_lengths_say_nothing_about_the_label(stream, tokenizer):
    """With the label flipped, each row has the same lengths: they are of both candidates."""
    data = make(stream, tokenizer, batch_size=32)
    lengths = {}
    for flip in (False, True):
        draws = masking.uniform((0,), np.arange(100), 3 + pairs._CANDIDATES)
        if flip:
            draws[:, 2] = 1 - draws[:, 2]
        made = [data._parts(0, e % data.n_examples, draws[e]) for e in range(100)]
        lengths[flip] = [[len(part) for part in parts] for parts, _ in made]
        assert 30 < sum(label for _, label in made) < 70
    assert lengths[False] == lengths[True]


def test_sentence_order_swaps(stream, tokenizer):
    batch = make(stream, tokenizer, pairs="sop").batch_at(0)
    nsp = make(stream, tokenizer).batch_at(0)
    swapped = 0
    for row in range(16):  # the same draws as next-sentence prediction, whose first part stays
        (a, b), (first, _) = parts(batch, row, tokenizer)[0], parts(nsp, row, tokenizer)[0]
        assert first == (b if batch["next_label"][row, 0] else a)
        swapped += batch["next_label"][row, 0]
    assert 2 < swapped < 14


def test_without_pairs_there_is_one_part_and_no_label(stream, tokenizer):
    batch = make(stream, tokenizer, pairs="none").batch_at(0)
    assert "next_label" not in batch and not batch["types"].any()
    assert batch["segment_ids"].sum(1).max() == 64


def test_a_batch_is_a_function_of_seed_and_step(stream, tokenizer):
    one, two = make(stream, tokenizer), make(stream, tokenizer)
    two.batch_at(7)
    for k, v in one.batch_at(3).items():
        np.testing.assert_array_equal(v, two.batch_at(3)[k])
        np.testing.assert_array_equal(v[4:8], two.batch_at(3, slice(4, 8))[k])
    assert (one.batch_at(3)["tokens"] != one.batch_at(4)["tokens"]).any()
    assert (
        one.batch_at(3)["tokens"] != make(stream, tokenizer, seed=1).batch_at(3)["tokens"]
    ).any()


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_seed_decides_pairs_and_masks(stream, tokenizer, dynamic):
    """Of the same examples in the same order, as evaluation takes them."""
    a, b = (make(stream, tokenizer, False, seed=s, dynamic=dynamic).batch_at(1) for s in (0, 1))
    assert (a["masked_positions"] != b["masked_positions"]).mean() > 0.5
    assert 0.2 < (a["next_label"] != b["next_label"]).mean() < 0.8


def test_each_step_draws_other_masks(stream, tokenizer):
    data = make(stream, tokenizer, pairs="none", short_fraction=0.0)
    a, b = (data.batch_at(step)["masked_positions"] for step in (3, 4))
    assert (a == b).all(1).mean() < 0.1


def masks_of_examples(data, steps):
    masks = {}
    for step in steps:
        batch = data.batch_at(step)
        for row, name in enumerate(data.examples_at(step)):
            masks.setdefault(name, []).append(tuple(batch["masked_positions"][row]))
    return masks


def test_static_masks_are_those_of_the_first_epoch(stream, tokenizer):
    same = lambda dynamic: [
        len(set(masks)) == 1
        for masks in masks_of_examples(make(stream, tokenizer, dynamic=dynamic), range(20)).values()
        if len(masks) > 1
    ]
    assert len(same(False)) > 10 and all(same(False))
    assert np.mean(same(True)) < 0.2


def test_some_rows_are_short(stream, tokenizer):
    length = lambda fraction: np.concatenate(
        [
            make(stream, tokenizer, pairs="none", short_fraction=fraction, batch_size=32)
            .batch_at(i)["segment_ids"]
            .sum(1)
            for i in range(8)
        ]
    )
    long, some = length(0.0), length(0.5)
    assert (some < long).mean() > 0.3 and (some <= long).all()


def test_evaluation_takes_each_example_once(stream, tokenizer):
    data = make(stream, tokenizer, shuffle=False)
    seen = [name for i in range(data.n_batches) for name in data.examples_at(i)]
    assert seen == [f"s:{i}" for i in range(data.n_examples)]
    last = data.batch_at(data.n_batches - 1)
    real = data.n_examples - 16 * (data.n_batches - 1)
    assert last["next_weight"][:, 0].tolist() == [1.0] * real + [0.0] * (16 - real)
    assert not last["weights"][real:].any() and last["weights"][:real].any(1).all()
    with pytest.raises(UserError, match="no batch"):
        data.batch_at(data.n_batches)


def test_windows_cover_long_documents_evenly(stream):
    windows = pairs._Windows(stream, 20, 2, 1)
    lengths = np.diff(stream.bounds()) - 2
    assert windows.n == sum(-(-n // 20) for n in lengths)
    d = int(lengths.argmax())
    first = int(windows._first[d])
    begin = int(stream.bounds()[d]) + 1
    np.testing.assert_array_equal(windows.tokens(first, 20), stream.window(begin, 20))
    last = int(windows._first[d + 1]) - 1
    np.testing.assert_array_equal(
        windows.tokens(last, 20), stream.window(begin + int(lengths[d]) - 20, 20)
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(pairs="next"), "task.pairs"),
        (dict(mask_unit="letter"), "task.mask_unit"),
        (dict(mask_rate=0.0), "mask_rate"),
        (dict(max_predictions=100), "max_predictions"),
    ],
)
def test_wrong_options_are_refused(stream, tokenizer, changes, message):
    with pytest.raises(UserError, match=message):
        make(stream, tokenizer, **changes)


def test_too_little_text_is_refused(tokenizer, stream, tmp_path):
    one = build_store(
        lambda counts: iter(["the shape . the array"]), "y", tokenizer, 0.0, 0.0, str(tmp_path)
    ).split("train")
    with pytest.raises(UserError, match="only one document"):
        make(one, tokenizer, batch_size=1)
    with pytest.raises(UserError, match="too little data"):
        make(stream, tokenizer, batch_size=100_000)


def test_a_tokenizer_without_a_mask_is_refused(stream):
    from bigjax.data.tokenizers.bytes import Bytes

    with pytest.raises(UserError, match="wordpiece"):
        make(stream, Bytes())


def test_the_most_common_token(stream, tokenizer):
    tokens = stream.window(0, stream.n_tokens)
    tokens = tokens[(tokens != tokenizer.bos_id) & (tokens != tokenizer.eos_id)]
    piece, share = pairs.most_common_token(stream, tokenizer)
    assert share == pytest.approx(np.bincount(tokens).max() / len(tokens))
    assert tokenizer.encode(piece)[0] == np.bincount(tokens).argmax()
