"""Hot words in generated headlines, and the baseline that quotes the sentence with most of them."""

from collections.abc import Collection

from bigjax.evals.text_metrics import ngrams, sentences, words


def coverage(candidates: list[str], articles: list[str], hot_words: Collection[str]) -> float:
    """The fraction of candidates that repeat a hot word of their article, among those whose article
    has one; 0 if none has. Words are compared in full and without case.

    hot_words: words or phrases.
    """
    phrases = _phrases(hot_words)
    repeated = [
        bool(_hot(words(candidate), phrases) & in_article)
        for candidate, article in zip(candidates, articles, strict=True)
        if (in_article := _hot(words(article), phrases))
    ]
    return sum(repeated) / max(len(repeated), 1)


def hot_word_headline(article: str, hot_words: Collection[str]) -> str:
    """The first sentence with the most different hot words: the lead if none has any."""
    phrases = _phrases(hot_words)
    return max(sentences(article), key=lambda s: len(_hot(words(s), phrases)), default="")


def _phrases(hot_words: Collection[str]) -> set[tuple[str, ...]]:
    return {tuple(words(word)) for word in hot_words}


def _hot(tokens: list[str], phrases: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The phrases that occur in the text."""
    lengths = {len(phrase) for phrase in phrases}
    return {gram for n in lengths for gram in ngrams(tokens, n)} & phrases
