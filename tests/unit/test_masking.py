"""Masked language modelling's examples: what is hidden, and which texts are pairs."""

import dataclasses

import numpy as np
import pytest

from bigjax.data import masking, pairs
from bigjax.data.store import build_store
from bigjax.data.wordpiece import train_wordpiece
from bigjax.errors import UserError
from tests.conftest import WORDS

T, MASK_ID, VOCAB = 64, 4, 1000
ROWS = np.arange(200)


def rows_of_tokens():
    """tokens [200, T] without special ids, every third a continuation, the last 10 padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, VOCAB, (len(ROWS), T)).astype(np.int32)
    starts = np.broadcast_to(np.arange(T) % 3 != 2, tokens.shape)
    allowed = np.broadcast_to((np.arange(T) > 0) & (np.arange(T) < T - 10), tokens.shape)
    return tokens, allowed, starts, np.full(len(ROWS), T - 10)


def hide(unit, seed=0, rate=0.15, limit=20):
    tokens, allowed, starts, lengths = rows_of_tokens()
    return tokens, masking.mask(
        tokens,
        allowed,
        starts,
        lengths,
        (seed,),
        ROWS,
        rate=rate,
        max_predictions=limit,
        unit=unit,
        mask_id=MASK_ID,
        vocab_size=VOCAB,
    )


def chosen_columns(masked):
    out = np.zeros((len(ROWS), T), bool)
    for row in ROWS:
        out[row, masked.masked_positions[row, masked.weights[row] > 0]] = True
    return out


@pytest.mark.parametrize("unit", masking.UNITS)
def test_targets_are_what_stood_there_and_nothing_else_changed(unit):
    tokens, masked = hide(unit)
    chosen = chosen_columns(masked)
    assert (masked.tokens == tokens)[~chosen].all()
    for row in ROWS:
        real = masked.weights[row] > 0
        columns = masked.masked_positions[row, real]
        assert (np.diff(columns) > 0).all() and (
            masked.targets[row, real] == tokens[row, columns]
        ).all()
        assert (masked.targets[row, ~real] == 0).all()
    assert not chosen[:, 0].any() and not chosen[:, -10:].any()


def test_15_percent_are_hidden_80_10_10():
    tokens, masked = hide("token")
    assert (masked.weights.sum(1) == round(0.15 * (T - 10))).all()
    chosen = chosen_columns(masked)
    new, old = masked.tokens[chosen], tokens[chosen]
    assert abs((new == MASK_ID).mean() - 0.8) < 0.03
    assert abs((new == old).mean() - 0.1) < 0.03
    random = new[(new != MASK_ID) & (new != old)]
    assert abs(len(random) / len(new) - 0.1) < 0.03 and random.max() > 0.9 * VOCAB


@pytest.mark.parametrize("unit", masking.UNITS)
def test_shares_are_exact_to_two_points(unit):
    """Over many draws: a shift of two points, such as 12% random and 8% kept, is seen.

    Of n units (those of spans change together) a share p has a standard error of
    sqrt(p (1 - p) / n). A share may be off by four of them, eight are less than two points.
    """
    n, counts = 0, np.zeros(3)
    for seed in range(100 if unit == "span" else 20):
        tokens, masked = hide(unit, seed, limit=T)
        chosen = chosen_columns(masked)
        new, old = masked.tokens[chosen], tokens[chosen]
        kept, hidden = new == old, new == MASK_ID
        counts += [hidden.sum(), (~kept & ~hidden).sum(), kept.sum()]
        begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
        n += begins.sum() if unit == "span" else len(new)
    shares = counts / counts.sum()
    same = 0.1 / VOCAB  # a random id may be the token's own, or the mask's
    want = np.array([0.8 + same, 0.1 - 2 * same, 0.1 + same])
    # Runs differ in length, which widens the error, by less than half.
    error = np.sqrt(want * (1 - want) / n) * (1.5 if unit == "span" else 1)
    assert (8 * error[1:] < 0.02).all()
    assert (abs(shares - want) < 4 * error).all(), (shares, error)


def test_at_most_max_predictions_and_at_least_one():
    assert (hide("token", rate=0.9, limit=7)[1].weights.sum(1) == 7).all()
    assert (hide("token", rate=0.001)[1].weights.sum(1) == 1).all()
    assert (hide("token", rate=8.6 / (T - 10))[1].weights.sum(1) == 9).all()  # to the nearest


def test_every_place_is_equally_likely():
    counts = sum(chosen_columns(hide("token", seed)[1]).sum(0) for seed in range(30))
    inside = counts[1 : T - 10] / (30 * len(ROWS))
    np.testing.assert_allclose(inside, 8 / (T - 11), atol=0.03)


def test_whole_words_are_hidden_or_not():
    _, masked = hide("word")
    chosen = chosen_columns(masked)
    words = chosen[:, : T - 10].reshape(len(ROWS), -1, 3)  # (start, start, continuation)
    assert (words[:, :, 1] == words[:, :, 2]).all()
    assert (words[:, :, 0] != words[:, :, 1]).any()


def test_spans_are_runs_of_words_that_change_in_one_way():
    tokens, masked = hide("span", limit=40, rate=0.3)
    chosen = chosen_columns(masked)

    def runs(c):
        return c.sum() / (c[:, 1:] & ~c[:, :-1]).sum()

    assert runs(chosen) > 2.5 * runs(chosen_columns(hide("token", rate=0.3, limit=40)[1]))
    both = chosen[:, 1:] & chosen[:, :-1]
    is_mask = masked.tokens == MASK_ID
    assert (is_mask[:, 1:] == is_mask[:, :-1])[both].mean() > 0.95  # spans may touch


def test_lengths_of_spans_are_those_of_spanbert():
    """Geometric with p = 0.2, drawn again above 10: not p = 0.4, and not cut to 10."""
    words = np.ones((2000, 400), bool)
    begins = masking._span_starts(words, masking.uniform((0, 0), np.arange(2000), 400))
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in begins])
    p = 0.2 * 0.8 ** np.arange(10)
    found = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    np.testing.assert_allclose(found, p / p.sum(), atol=0.005)
    assert lengths.max() == 10 and abs(lengths.mean() - 3.8) < 0.05
    # The first words of a row begin one as often as others do; so does the word behind them.
    assert abs(begins[:, 1:4].mean() - begins[:, 200:].mean()) < 0.03


def test_hidden_runs_are_as_long_as_spans():
    """Of a row where few are hidden, so that few touch each other or are cut."""
    rows, length = np.arange(2000), 500
    allowed = np.ones((len(rows), length), bool)
    tokens = np.full(allowed.shape, 9, np.int32)
    masked = mask_rows(tokens, allowed, allowed, rate=0.05, limit=25)
    hidden = np.zeros((len(rows), length + 1), bool)
    hidden[np.repeat(rows, 25), masked.masked_positions.ravel()] = True
    n_runs = (hidden[:, 1:] & ~hidden[:, :-1]).sum()
    assert abs(hidden.sum() / n_runs - 3.8) < 0.3


def mask_rows(tokens, allowed, starts, unit="span", rate=0.15, limit=20, vocab=VOCAB):
    n, length = tokens.shape
    return masking.mask(
        tokens,
        allowed,
        starts,
        np.full(n, length),
        (1,),
        np.arange(n),
        rate=rate,
        max_predictions=limit,
        unit=unit,
        mask_id=MASK_ID,
        vocab_size=vocab,
    )


def hidden_of(masked, length):
    out = np.zeros((len(masked.masked_positions), length), bool)
    row, column = np.nonzero(masked.weights)
    out[row, masked.masked_positions[row, column]] = True
    return out


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("starts_second", [True, False])
def test_nothing_is_hidden_across_a_separator(unit, starts_second):
    """The word before [SEP] and the one behind it are hidden independently, also where the second
    text begins in the middle of a word."""
    n, length, sep = 4000, 64, 30
    allowed = np.ones((n, length), bool)
    allowed[:, [0, sep, length - 1]] = False
    starts = np.ones((n, length), bool)
    starts[:, sep + 1] = starts_second
    hidden = hidden_of(mask_rows(np.full((n, length), 9, np.int32), allowed, starts, unit), length)
    before, behind = hidden[:, sep - 1], hidden[:, sep + 1]
    assert abs((before & behind).mean() - before.mean() * behind.mean()) < 0.01
    assert not hidden[~allowed].any() and min(before.mean(), behind.mean()) > 0.1


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("length", [8, 16, 32, 64])
def test_each_row_hides_something_and_the_right_share(length, unit, pieces):
    """Words and spans are larger than what may be hidden of short texts."""
    n = 1000
    allowed = np.ones((n, length), bool)
    allowed[:, [0, -1]] = False
    starts = np.broadcast_to((np.arange(length) - 1) % pieces == 0, (n, length))
    tokens = np.full((n, length), 9, np.int32)
    numbers = mask_rows(tokens, allowed, starts, unit).weights.sum(1)
    want = round(0.15 * length)
    if unit == "span":
        assert (numbers == want).all()
    assert numbers.min() >= 1 and 0.95 * want < numbers.mean() < 1.05 * max(want, pieces)
    few = mask_rows(tokens, allowed, starts, unit, limit=2).weights.sum(1)
    assert few.min() >= 1 and few.max() <= 2


def test_a_row_of_one_token_hides_it_and_an_empty_row_nothing():
    allowed = np.zeros((2, 8), bool)
    allowed[0, 3] = True
    for unit in masking.UNITS:
        starts = np.zeros((2, 8), bool)  # it continues a word that was cut off
        masked = mask_rows(np.full((2, 8), 9, np.int32), allowed, starts, unit)
        assert masked.weights.sum(1).tolist() == [1, 0] and masked.masked_positions[0, 0] == 3


def test_places_of_words_and_spans_are_about_equally_likely():
    n, length = 10_000, 64
    allowed = np.ones((n, length), bool)
    for unit in ("word", "span"):
        tokens = np.full((n, length), 9, np.int32)
        share = hidden_of(mask_rows(tokens, allowed, allowed, unit), length).mean(0)
        assert abs(share / share.mean() - 1).max() < 0.12


def test_random_ids_are_of_the_whole_vocabulary():
    found = np.concatenate(
        [
            masked.tokens[(masked.tokens != MASK_ID) & (masked.tokens != tokens)]
            for tokens, masked in (hide("token", seed, rate=0.9, limit=50) for seed in range(5))
        ]
    )
    share = np.histogram(found, 10, (0, VOCAB))[0] / len(found)
    np.testing.assert_allclose(share, 0.1, atol=0.02)
    assert found.min() < 0.01 * VOCAB and found.max() >= 0.99 * VOCAB


def test_numbers_depend_on_key_row_and_column_only():
    whole = masking.uniform((1, 2), np.arange(10), 50)
    np.testing.assert_array_equal(whole[3:7], masking.uniform((1, 2), np.arange(3, 7), 50))
    np.testing.assert_array_equal(whole[:, :20], masking.uniform((1, 2), np.arange(10), 20))
    assert np.abs(whole - masking.uniform((1, 3), np.arange(10), 50)).mean() > 0.2
    many = masking.uniform((0,), np.arange(1000), 100)
    assert abs(many.mean() - 0.5) < 0.01 and abs(many.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.1


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
    found = {}
    for step in steps:
        batch = data.batch_at(step)
        for row, name in enumerate(data.examples_at(step)):
            found.setdefault(name, []).append(tuple(batch["masked_positions"][row]))
    return found


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
    windows = pairs._Windows(stream, 20, 2)
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
    from bigjax.data.tokenizer import Bytes

    with pytest.raises(UserError, match="wordpiece"):
        make(stream, Bytes())


def test_the_commonest_token(stream, tokenizer):
    tokens = stream.window(0, stream.n_tokens)
    tokens = tokens[(tokens != tokenizer.bos_id) & (tokens != tokenizer.eos_id)]
    piece, share = pairs.most_common_token(stream, tokenizer)
    assert share == pytest.approx(np.bincount(tokens).max() / len(tokens))
    assert tokenizer.encode(piece)[0] == np.bincount(tokens).argmax()
