"""Headlines as adversarial training reads them: in rounds, and with a few words changed."""

from collections.abc import Callable, Sequence
import functools

import numpy as np

from bigjax.data import word_vectors
from bigjax.data.augment import Augment, read_thesaurus
from bigjax.data.batches import SplitData
from bigjax.data.tokenizers.wordpiece import WordPiece
from bigjax.errors import UserError
from bigjax.projects.seqgan.headline_data import HeadlineBatches, Headlines
from bigjax.projects.seqgan.hot_words import write_hot_words
from bigjax.projects.seqgan.round_batches import RoundBatches

HOT_WORDS = "hot_words.txt"  # in a run's folder
NEIGHBOURS, MIN_COSINE = 5, 0.5  # of word vectors, used without a thesaurus


class Corpus(SplitData):
    """Headlines whose training batches come in rounds."""

    def __init__(self, headlines: Headlines, options) -> None:
        super().__init__(headlines.names, headlines.fingerprint, headlines.tokenizer)
        self.hot_words, self.rows = headlines.hot_words, headlines.rows
        self._headlines, self._options = headlines, options

    def check_split(self, name: str) -> None:
        self._headlines.check_split(name)

    def batches(self, name: str, **options):
        """HeadlineBatches; if shuffled in rounds."""
        batches = self._headlines.batches(name, **options)
        if not batches.shuffle:
            return batches
        change = changes(self._options, self._headlines.tokenizer)
        return ChangedInRounds(batches, self._options, change, batches.seed)

    def texts(self, name: str) -> list[str]:
        """The headlines and articles of a split, each once."""
        rows = self.rows(name)
        return list(dict.fromkeys(row[k] for row in rows for k in ("headline", "article")))

    def save(self, folder) -> None:
        """Writes the hot words, which the trained model needs for predictions."""
        if self.hot_words:
            write_hot_words(folder / HOT_WORDS, self.hot_words)


class ChangedInRounds(RoundBatches):
    """Batches of HeadlineBatches in rounds, changed by changed(batch, seed, first_row, judged)."""

    def __init__(self, data: HeadlineBatches, options, changed: Callable, seed: int) -> None:
        super().__init__(data, options.round)
        self._generator_updates, self._changed, self._seed = (
            options.generator_updates,
            changed,
            seed,
        )

    def _batch(self, phase: str, i: int, number: int, rows: slice | None) -> dict:
        judged = phase == "discriminator" or (
            phase == "adversarial" and i >= self._generator_updates
        )
        first_row = rows.start or 0 if rows else 0
        return self._changed(
            super()._batch(phase, i, number, rows), [self._seed, number], first_row, judged=judged
        )


def changes(options, tokenizer: WordPiece) -> Callable[..., dict]:
    """(batch, seed, first_row, judged) -> batch with easy data augmentation as options say.

    Changes complete words of articles. Headlines are changed only for the discriminator (so that it
    does not memorise them), not where the generator learns to write them. A function of seed and of
    the row's number in the global batch, from first_row on.
    """
    of_articles, of_headlines = (
        _augment(rate, options, tokenizer) for rate in (options.augment, options.augment_headlines)
    )

    def changed(batch: dict, seed: list[int], first_row: int, judged: bool) -> dict:
        batch = {k: x.copy() for k, x in batch.items()}
        for i in range(len(batch["tokens"])):
            rng = np.random.default_rng([*seed, first_row + i])
            row = {k: x[i] for k, x in batch.items()}  # views: written in place
            if of_articles:
                _change_article(row, of_articles, tokenizer, rng)
            if of_headlines and judged:
                _change_headline(row, of_headlines, tokenizer, rng)
        return batch

    return changed if of_articles or of_headlines else lambda batch, *_, **__: batch


def _augment(rate: float, options, tokenizer: WordPiece) -> Augment | None:
    """For words as tuples of ids; with synonyms only if options name a source of them."""
    if not rate:
        return None
    synonyms = _synonyms(options, tokenizer)
    more = rate if synonyms else 0.0
    return Augment(synonyms, replace=more, insert=more, swap=rate, delete=rate)


class Synonyms:
    """synonyms(word) -> its synonyms; words are tuples of ids.

    The words are those of a file, as encoded by the tokenizer: case matters only if it does there,
    and one may be several words of the tokenizer, as in Chinese.
    """

    def __init__(
        self,
        words: Sequence[str],
        find: Callable[[str], Sequence[str]],
        tokenizer: WordPiece,
        path: str,
    ) -> None:
        """find(word) -> others of the file. UserError if the tokenizer knows no word of it."""
        self._tokenizer = tokenizer
        self._words = dict(zip(self._ids(words), words))
        self._words.pop((), None)
        if not self._words:
            raise UserError(
                f"{path} has no word that the tokenizer knows. Is it of another language?"
            )
        self._longest = max(
            sum(not tokenizer.is_continuation[i] for i in ids) for ids in self._words
        )
        self._found = functools.cache(
            lambda ids: [x for x in self._ids(find(self._words[ids])) if x]
        )

    def __call__(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self._found(ids) if ids in self._words else []

    def joined(self, words: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The words, with those joined that together are a word of the file, the longest first."""
        joined_words, i = [], 0
        while i < len(words):
            n = next(
                (
                    n
                    for n in range(self._longest, 1, -1)
                    if sum(words[i : i + n], ()) in self._words
                ),
                1,
            )
            joined_words.append(sum(words[i : i + n], ()))
            i += n
        return joined_words

    def _ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """() for a word that has an unknown token."""
        encoded = self._tokenizer.encode_batch(list(words))
        return [() if self._tokenizer.unk_id in x else tuple(x.tolist()) for x in encoded]


def _synonyms(options, tokenizer: WordPiece) -> Synonyms | None:
    """From a thesaurus, else the nearest word vectors; None without either."""
    if options.thesaurus:
        thesaurus = read_thesaurus(options.thesaurus)
        return Synonyms([*thesaurus], thesaurus.__getitem__, tokenizer, options.thesaurus)
    if not options.embeddings:
        return None
    vectors = word_vectors.read(options.embeddings)

    def nearest(word: str) -> list[str]:
        return [
            other
            for other, cosine in word_vectors.neighbours(vectors, word, NEIGHBOURS)
            if cosine >= MIN_COSINE and not other.startswith("##")
        ]

    return Synonyms(
        [word for word in vectors.words if not word.startswith("##")],
        nearest,
        tokenizer,
        options.embeddings,
    )


def _change_article(row: dict, augment: Augment, tokenizer: WordPiece, rng) -> None:
    n, size = int(row["source_mask"].sum()), len(row["source"])
    end = n - int(row["source_types"][:n].sum()) - 1  # of the article, where its [SEP] is
    if end < 1:
        return
    rest = row["source"][end:n].copy()
    new = _changed(row["source"][:end], augment, tokenizer, rng)[: size - len(rest)]
    n = len(new) + len(rest)
    row["source"][:] = [*new, *rest, *[tokenizer.pad_id] * (size - n)]
    row["source_mask"][:] = np.arange(size) < n
    row["source_types"][:] = (np.arange(size) > len(new)) & (np.arange(size) < n)


def _change_headline(row: dict, augment: Augment, tokenizer: WordPiece, rng) -> None:
    n, size = int(row["weights"].sum()), len(row["tokens"])
    new = _changed(row["tokens"][: n - 1], augment, tokenizer, rng)[: size - 1]
    n = len(new) + 1
    row["tokens"][:] = [*new, tokenizer.eos_id, *[tokenizer.pad_id] * (size - n)]
    row["weights"][:] = np.arange(size) < n


def _changed(ids: np.ndarray, augment: Augment, tokenizer: WordPiece, rng) -> list[int]:
    words: list[tuple[int, ...]] = []
    for i in ids.tolist():
        if words and tokenizer.is_continuation[i]:
            words[-1] += (i,)
        else:
            words.append((i,))
    if augment.synonyms:
        words = augment.synonyms.joined(words)
    return [i for word in augment(words, rng) for i in word]
