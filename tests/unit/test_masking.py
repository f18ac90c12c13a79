"""Masked language modelling's examples: what is hidden, and which texts are pairs."""

import numpy as np
import pytest

from bigjax.data import masking

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
    shares = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    np.testing.assert_allclose(shares, p / p.sum(), atol=0.005)
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
    ids = np.concatenate(
        [
            masked.tokens[(masked.tokens != MASK_ID) & (masked.tokens != tokens)]
            for tokens, masked in (hide("token", seed, rate=0.9, limit=50) for seed in range(5))
        ]
    )
    share = np.histogram(ids, 10, (0, VOCAB))[0] / len(ids)
    np.testing.assert_allclose(share, 0.1, atol=0.02)
    assert ids.min() < 0.01 * VOCAB and ids.max() >= 0.99 * VOCAB


def test_numbers_depend_on_key_row_and_column_only():
    numbers = masking.uniform((1, 2), np.arange(10), 50)
    np.testing.assert_array_equal(numbers[3:7], masking.uniform((1, 2), np.arange(3, 7), 50))
    np.testing.assert_array_equal(numbers[:, :20], masking.uniform((1, 2), np.arange(10), 20))
    assert np.abs(numbers - masking.uniform((1, 3), np.arange(10), 50)).mean() > 0.2
    many = masking.uniform((0,), np.arange(1000), 100)
    assert abs(many.mean() - 0.5) < 0.01 and abs(many.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.1
