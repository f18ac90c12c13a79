"""Hot words in generated headlines, and the baseline that quotes the sentence with most of them."""

from collections.abc import Collection

from bigjax.evals.text_metrics import ngrams, sentences, words


def coverage(candidates: list[str], articles: list[str], hot_words: Collection[str]) -> float:
    """Of the candidates whose article has a hot word, the fraction that repeat a hot word of that
    article; 0 if no article has one. Whole words, in either case.

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
    """The sentence with most different hot words, of equals the first: the lead if none has any."""
    phrases = _phrases(hot_words)
    return max(sentences(article), key=lambda s: len(_hot(words(s), phrases)), default="")


def _phrases(hot_words: Collection[str]) -> set[tuple[str, ...]]:
    return {tuple(words(word)) for word in hot_words}


def _hot(tokens: list[str], phrases: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of the phrases that the text has."""
    lengths = {len(phrase) for phrase in phrases}
    return {gram for n in lengths for gram in ngrams(tokens, n)} & phrases
