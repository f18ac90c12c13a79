"""Skip-gram: which pairs a batch has, the step against autodiff, and words of two topics."""

import collections

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from bigjax.data.skip_gram import SkipGramData, vocabulary
from bigjax.data.store import split_of
from bigjax.data.tokenizers.wordpiece import SPECIALS
from bigjax.data.word_vectors import WordVectors, neighbours
from bigjax.errors import UserError
from bigjax.train import embeddings, skip_gram

LINE = [[f"{i:04}" for i in range(1000)]]  # ids are places


def make(texts, **options):
    return SkipGramData(texts, **{"batch_size": 4096, "min_count": 1, "subsample": 1, **options})


def test_vocabulary_is_by_count():
    words, counts = vocabulary([["b", "a", "c"], ["b", "a", "d"], ["b"]], 2)
    assert words == ["b", "a"] and counts.tolist() == [3, 2]


def test_a_batch_is_a_function_of_seed_and_step():
    texts = [["a", "b", "c", "d"] * 50]
    options = dict(batch_size=64, subsample=0.01)
    data, later = make(texts, **options), make(texts, **options)
    steps = [data.batch_at(step) for step in range(4 * data.pass_steps)]
    again = later.batch_at(len(steps) - 1), later.batch_at(0)
    for one, other in zip((steps[-1], steps[0]), again):
        assert all((one[name] == other[name]).all() for name in one)
    assert (steps[0]["centre"] != steps[1]["centre"]).any()
    assert (make(texts, seed=1, **options).batch_at(0)["negatives"] != steps[0]["negatives"]).any()
    assert {name: (a.shape, a.dtype) for name, a in steps[0].items()} == {
        "centre": ((64,), np.int32),
        "context": ((64,), np.int32),
        "negatives": ((64, 5), np.int32),
    }


def test_near_words_are_drawn_more_often():
    batch = make(LINE, window=3, batch_size=30_000).batch_at(0)
    far = batch["context"] - batch["centre"]
    share = {r: (far == r).mean() for r in set(far.tolist())}
    assert share == pytest.approx(
        {-3: 1 / 12, -2: 2 / 12, -1: 3 / 12, 1: 3 / 12, 2: 2 / 12, 3: 1 / 12}, abs=0.02
    )


def test_no_pair_is_of_two_texts():
    data = make([[f"{t}.{i}" for i in range(3)] for t in range(50)] + [["alone"]])
    batch = data.batch_at(3)
    text = [word.split(".")[0] for word in data.words]
    assert all(text[a] == text[b] for a, b in zip(batch["centre"], batch["context"]))
    assert (batch["centre"] != batch["context"]).all()


def test_frequent_words_are_dropped():
    texts = [[f"w{i}" if i % 2 else "the" for i in range(6000)]]
    share = lambda t: np.mean(
        [
            (d.batch_at(s)["centre"] == 0).mean()
            for d in [make(texts, subsample=t)]
            for s in range(5)
        ]
    )
    assert share(1) == pytest.approx(0.5, abs=0.02)
    # "the" is half of the words: kept by sqrt(.02 / .5) = 1/5, so 1 of 6 that are left.
    assert share(0.02) == pytest.approx(1 / 6, abs=0.03)


def test_dropped_words_bring_others_near():
    texts = [[word for i in range(500) for word in (f"w{i:03}", "the")]]
    data = make(texts, window=1, subsample=0.01)
    assert any(0 not in pair for pair in zip(*map(data.batch_at(0).get, ("centre", "context"))))


def test_negatives_are_by_count_to_three_quarters():
    data = make([["a"] * 16 + ["b"] * 1 + ["c"] * 81], batch_size=20_000)
    counts = np.bincount(data.batch_at(0)["negatives"].ravel())
    assert data.words == ["c", "a", "b"]
    assert counts / counts.sum() == pytest.approx(np.array([27, 8, 1]) / 36, abs=0.01)


def test_what_is_refused():
    for options, message in (
        ({"window": 0}, "window is 0"),
        ({"subsample": 2}, "subsample is 2"),
        ({"min_count": 2}, "found no pair of words: of 1 texts"),
    ):
        with pytest.raises(UserError, match=message):
            make(LINE, **options)
    with pytest.raises(UserError, match="no batch -1"):
        make(LINE).batch_at(-1)
    with pytest.raises(UserError, match="drops so many words"):
        make([["a", "b"]], subsample=1e-9).batch_at(0)
    with pytest.raises(UserError, match="steps is 0"):
        skip_gram.fit(make(LINE), 4, 0)


def test_a_step_is_adagrad_on_the_loss_of_the_paper():
    keys = jax.random.split(jax.random.key(0))
    v, u = (jax.random.normal(key, (12, 4)) for key in keys)
    centre, context, negatives = [0, 1], [2, 3], [[4, 5], [3, 6]]  # 3 is no negative of itself

    def loss(v, u):
        total = 0
        for i, o, others in zip(centre, context, negatives):
            total -= jnp.log(jax.nn.sigmoid(v[i] @ u[o]))
            total -= sum(jnp.log(jax.nn.sigmoid(-v[i] @ u[n])) for n in others if n != o)
        return total

    def expected(table, grad):
        size = jnp.sqrt(jnp.square(grad).mean(1, keepdims=True))
        return table - 0.1 * jnp.where(size > 0, grad / jnp.where(size > 0, size, 1), 0)

    others = np.array([[o, *n] for o, n in zip(context, negatives)])
    value, grads = jax.value_and_grad(loss, (0, 1))(v, u)
    wanted = expected(v, grads[0]), expected(u, grads[1])
    state, step_loss = skip_gram._train(
        [(v, jnp.zeros(12)), (u, jnp.zeros(12))],
        np.float32([0.1]),
        np.array([centre]),
        others[None],
    )
    assert float(step_loss) == pytest.approx(float(value) / 2, rel=1e-5)
    for (table, _), want in zip(state, wanted):
        np.testing.assert_allclose(table, want, atol=1e-5)


def test_words_of_a_topic_end_near_each_other():
    rng = np.random.default_rng(0)
    texts = [[f"{'ab'[i % 2]}{n}" for n in rng.integers(10, size=8)] for i in range(400)]
    data = make(texts, batch_size=128)
    lines = []
    table = skip_gram.fit(data, d_model=8, steps=300, log=lines.append)
    assert table.shape == (20, 8) and table.dtype == np.float32 and "300 of 300" in lines[-1]
    vectors = WordVectors(data.words, table)
    for word in data.words:
        topics = collections.Counter(near[0] for near, _ in neighbours(vectors, word, 9))
        assert topics == {word[0]: 9}
    again = skip_gram.fit(data, d_model=8, steps=300, log=lines.append)
    assert (again == table).all()


# --- The text of `bigjax embeddings` -----------------------------------------------------------


def read_texts(tmp_path, valid_fraction=0.0, **content):
    """What `bigjax embeddings` reads and says of sources that are files of this content."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz", "the"]) + "\n")
    for name, raw in content.items():
        (tmp_path / name).write_bytes(raw)
    section = ml_collections.ConfigDict(
        dict(
            train="",
            sources={n: {"kind": "text", "path": f"{tmp_path}/{n}"} for n in content},
            tokenizer=dict(kind="wordpiece", path=str(vocab), lowercase=True),
            valid_fraction=valid_fraction,
            test_fraction=0.0,
            on_bad_utf8="replace",
            cache_dir=str(tmp_path / "cache"),
        )
    )
    lines = []
    c = ml_collections.ConfigDict({"data": section, "python_path": ""})
    _, texts = embeddings._texts(c, lines.append)
    return texts, lines


def test_embeddings_say_what_was_replaced_and_what_is_unknown(tmp_path):
    plain, odd = b"the a b\n" * 99, b"the \xff\n" + b"the Zyx4 a b c\n" * 30
    texts, lines = read_texts(tmp_path, one=plain, two=odd)
    assert len(texts) == 2 and len(lines) == 4, lines
    assert lines[0] == (
        "data: one train 1 documents 297 tokens; 0.000% of the bytes replaced; 0.00% unknown"
    )
    assert "two:1 has bytes that are not UTF-8" in lines[1]
    # WordPiece drops U+FFFD: 30 times five tokens, one of them [UNK], and the first.
    assert lines[2] == (
        "data: two train 1 documents 151 tokens; 0.219% of the bytes replaced; 19.87% unknown"
    )
    assert "30 of the 151 tokens of source 'two' (19.9%) are unknown" in lines[3]


def test_embeddings_leave_out_the_text_that_is_held_out(tmp_path):
    parts = [f"{letter} the\n" * 500 for letter in "abcdefghijklmnop"]
    content = {"one": "\n".join(parts).encode()}
    every, _ = read_texts(tmp_path, **content)
    texts, lines = read_texts(tmp_path, valid_fraction=0.5, **content)
    assert len(every) == len(parts) and 0 < len(texts) < len(every)
    assert texts == [text for text in every if split_of(text, 0.5, 0.0) == "train"]
    assert f"one train {len(texts)} documents" in lines[0]


def test_embeddings_refuse_text_of_another_encoding(tmp_path):
    with pytest.raises(UserError, match="are not UTF-8"):
        read_texts(tmp_path, one=b"caf\xe9 cr\xe8me\n" * 50)
