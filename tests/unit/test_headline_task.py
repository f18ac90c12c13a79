"""The headline task: augmentation, rounds, word vectors, and refused settings."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from bigjax.data import word_vectors
from bigjax.data.tokenizers.wordpiece import SPECIALS, WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan import augmented
from bigjax.projects.seqgan import headline as task
from tests.unit.test_headline_model import PAD, SEP, C

LETTERS = "abcdefghij"
TOKENIZER = WordPiece([*SPECIALS, *LETTERS, *(f"##{x}" for x in LETTERS)])


def batch_of(articles, headlines, size=8):
    """A batch as HeadlineBatches gives it, each row with the previous headline 'j'."""
    rows = []
    for article, headline in zip(articles, headlines):
        a, h = TOKENIZER.encode(article).tolist(), TOKENIZER.encode(headline).tolist()
        history = [TOKENIZER.encode("j")[0], SEP]
        n, m = len(a) + 3, len(h) + 1
        rows.append(
            (
                a + [SEP, *history] + [PAD] * (size - n),
                [0] * (n - 2) + [1, 1] + [0] * (size - n),
                [1] * n + [0] * (size - n),
                h + [SEP] + [PAD] * (size - m),
                [1] * m + [0] * (size - m),
            )
        )
    names = ("source", "source_types", "source_mask", "tokens", "weights")
    return {k: np.array(x, np.int32) for k, x in zip(names, zip(*rows))}


def options(**changes):
    return task.Config(**{"augment": 0.2, "augment_headlines": 0.2, **changes})


def test_augmentation_changes_only_words(tmp_path):
    (tmp_path / "t.txt").write_text("ab,cd\n")
    change = augmented.changes(options(thesaurus=str(tmp_path / "t.txt")), TOKENIZER)
    batch = batch_of(["ab e"] * 50, ["ab e"] * 50, 9)
    got = change(batch, [0, 1], 0, judged=True)
    articles = set()
    for i in range(50):
        n = int(got["source_mask"][i].sum())
        end = n - 3
        assert got["source"][i, end:].tolist() == [SEP, *TOKENIZER.encode("j"), SEP] + [PAD] * (
            9 - n
        )
        assert got["source_types"][i].tolist() == [0] * (end + 1) + [1, 1] + [0] * (9 - n)
        articles.add(TOKENIZER.decode(got["source"][i, :end]))
        m = int(got["weights"][i].sum())
        assert got["tokens"][i, m - 1 :].tolist() == [SEP] + [PAD] * (9 - m)
    assert {"e ab", "e", "ab", "cd e"} <= articles  # swap, delete, replace; "ab" stays a word
    assert any(len(x.split()) == 3 and "cd" in x for x in articles)  # insert
    assert batch["source"].tolist() == batch_of(["ab e"] * 50, ["ab e"] * 50, 9)["source"].tolist()


def test_words_of_a_thesaurus_are_tokenized(tmp_path):
    """Without case; one may be several of the tokenizer's, as in Chinese."""
    tokenizer = WordPiece([*SPECIALS, *LETTERS, *"高兴快乐天"])
    (tmp_path / "t.txt").write_text("高兴,快乐\nA,B\nzebra,c\n")
    synonyms = augmented._synonyms(options(thesaurus=str(tmp_path / "t.txt")), tokenizer)
    ids = lambda text: tuple(tokenizer.encode(text).tolist())
    assert synonyms(ids("高兴")) == [ids("快乐")] and synonyms(ids("高")) == []
    assert synonyms(ids("a")) == [ids("b")] and synonyms(ids("c")) == []
    assert synonyms.joined([ids(x) for x in "天高兴高天"]) == [
        ids("天"),
        ids("高兴"),
        ids("高"),
        ids("天"),
    ]
    change = augmented.changes(
        options(thesaurus=str(tmp_path / "t.txt"), augment_headlines=0.0), tokenizer
    )
    batch = batch_of(["a"], ["a"])
    batch["source"][0, :4] = *ids("天高兴"), SEP
    batch["source_types"][0], batch["source_mask"][0] = 0, np.arange(8) < 4
    texts = {
        tokenizer.decode(change(batch, [0, i], 0, judged=False)["source"][0, :3]) for i in range(50)
    }
    assert tokenizer.decode(ids("天快乐")) in texts
    (tmp_path / "t.txt").write_text("zebra,okapi\n")
    with pytest.raises(UserError, match="no word that the tokenizer knows"):
        augmented._synonyms(options(thesaurus=str(tmp_path / "t.txt")), tokenizer)


def test_augmentation_stays_within_its_length(tmp_path):
    (tmp_path / "t.txt").write_text("ab,cdefghij\n")
    change = augmented.changes(options(thesaurus=str(tmp_path / "t.txt")), TOKENIZER)
    got = change(batch_of(["ab c d"] * 30, ["ab c d e f"] * 30, 7), [0, 1], 0, judged=True)
    assert (got["source_mask"].sum(1) <= 7).all() and (got["weights"].sum(1) <= 7).all()
    ends = got["source_mask"].sum(1) - 1
    assert (got["source"][np.arange(30), ends] == SEP).all()


def test_augmentation_is_a_function_of_seed_and_row():
    change = augmented.changes(options(), TOKENIZER)
    batch = batch_of(["a b c d e"] * 8, ["a b c d"] * 8)
    both_rows = change(batch, [0, 1], 0, judged=True)
    half = change({k: x[4:] for k, x in batch.items()}, [0, 1], 4, judged=True)
    other = change(batch, [0, 2], 0, judged=True)
    assert all((both_rows[k][4:] == half[k]).all() for k in batch)
    assert (both_rows["source"] != other["source"]).any()
    assert len({tuple(x) for x in both_rows["source"].tolist()}) > 3


def test_headlines_of_the_generator_are_not_augmented():
    batch = batch_of(["a b c d e"] * 8, ["a b c d"] * 8)
    got = augmented.changes(options(), TOKENIZER)(batch, [0, 1], 0, judged=False)
    assert (got["tokens"] == batch["tokens"]).all() and (got["source"] != batch["source"]).any()
    same = augmented.changes(options(augment=0.0, augment_headlines=0.0), TOKENIZER)
    assert same(batch, [0, 1], 0, judged=True) is batch


def test_word_vectors_replace_a_thesaurus(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("a 1 0\nb 1 0.1\nc 0 1\n##d 1 0\n")
    synonyms = augmented._synonyms(options(embeddings=str(path)), TOKENIZER)
    ids = lambda text: tuple(TOKENIZER.encode(text).tolist())
    assert synonyms(ids("a")) == [ids("b")] and synonyms(ids("e")) == []


def test_only_texts_of_the_discriminator_are_augmented_in_a_round():
    class Data:
        n_examples = n_batches = 1

        def batch_at(self, step, rows=None):
            return {"step": np.full(2, step)}

    o = options(
        mle_rounds=1,
        mle_updates=2,
        discriminator_rounds=1,
        pretrain_updates=4,
        generator_updates=1,
        discriminator_updates=2,
    )
    seen = []

    def changed(batch, seed, first_row, judged):
        seen.append((*seed, first_row, judged))
        return batch

    batches = augmented.ChangedInRounds(Data(), o, changed, 7)
    got = [batches.batch_at(step, slice(2, 4)) for step in range(3)]
    assert [list(x) for x in got] == [["mle"], ["discriminator"], ["adversarial"]]
    assert [x.tolist() for d in got for b in d.values() for x in b.values()] == [
        [[0, 1]] * 2,
        [[2, 3]] * 2,
        [[4, 5]] * 2,
    ]
    assert seen == [(7, i, 2, i in (2, 3, 5)) for i in range(6)]


def test_vectors_of_pieces_initialise_the_embedding(tmp_path):
    c = dataclasses.replace(C, vocab_size=TOKENIZER.vocab_size, d_model=8)
    path = tmp_path / "v.txt"
    path.write_text("a 1 2 3 4 5 6 7 8\n##b 8 7 6 5 4 3 2 1\nzebra 1 1 1 1 1 1 1 1\n")
    table = jax.random.normal(jax.random.key(0), (c.vocab_size, 8))
    params = {"generator": {"embed": {"embedding": table}, "bias": 1}, "discriminator": 2}
    corpus = types.SimpleNamespace(tokenizer=TOKENIZER)
    with_vectors = lambda path: task._prepare(options(embeddings=str(path)), c)(params, corpus)
    new = np.array(with_vectors(path)["generator"]["embed"]["embedding"])
    changed = np.flatnonzero((new != table).any(1)).tolist()
    names = word_vectors.piece_names(TOKENIZER)
    assert [names[i] for i in changed] == ["a", "##b"]
    np.testing.assert_allclose(new[changed[0]] / new[changed[0], 0], range(1, 9), rtol=1e-5)
    assert new[changed].std() == pytest.approx(float(table.std()), rel=1e-4)
    assert task._prepare(options(), c)(params, corpus) is params
    for text, message in (("a 1 2\n", "d_model is 8"), ("zebra 1 2 3 4 5 6 7 8\n", "no vector")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            with_vectors(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(augment=1.0), "augment"),
        (dict(click_reward=-1.0), "click_reward"),
        (dict(augment=0.0, augment_headlines=0.0, thesaurus="x"), "thesaurus"),
        (dict(click_reward=1.0, reward="constant"), "constant"),
        (dict(rollouts=-1), "rollouts"),
    ],
)
def test_refused_tasks(changes, message):
    with pytest.raises(UserError, match=message):
        options(**changes)


def test_a_tokenizer_with_other_ids_is_refused():
    c = dataclasses.replace(C, vocab_size=TOKENIZER.vocab_size)
    task.check_tokenizer(TOKENIZER, c)
    with pytest.raises(UserError, match=r"set it to \(0, 1, 2, 3, 4\)"):
        task.check_tokenizer(TOKENIZER, dataclasses.replace(c, special_ids=(0, 1, 2, 4, 3)))
    with pytest.raises(UserError, match="vocab_size"):
        task.check_tokenizer(TOKENIZER, C)
