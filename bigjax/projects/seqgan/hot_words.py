"""Hot words: words that are more frequent in recent headlines and articles than in others.

A word is what WordPiece's basic tokenization yields (Devlin et al. 2018): lower case and without
accents if the tokenizer is, split at spaces and punctuation. Chinese has no spaces: a word is
each pair of neighbouring characters, the length of most Chinese words.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
import functools
import math
import re
import sys
from typing import Any
import unicodedata

import numpy as np

from bigjax.data.text_files import read_lines
from bigjax.data.tokenizers.wordpiece import WordPiece
from bigjax.errors import UserError

_PRIOR = 1000.0  # alpha_0: words of the complete text that are mixed into each side
_MIN_ROWS = 3  # a word of fewer recent rows says more about them than about the time
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"  # as BERT has them
_PARTS = re.compile(f"[{_HAN}]+|[^{_HAN}]+")
# A word and its weight, separated by something other than a tab.
_WEIGHTED = re.compile(r".+?(\s*[,;|:=]\s*|\s+)[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?")
_STOP_WORDS = frozenset(
    "a about above after again against all also although always am among an and another any are "
    "as at away back be became because become been before being below between both but by came "
    "can cannot come could did do does doing done down during each either else enough even ever "
    "every few for from further get gets getting give gives go goes going gone got had has have "
    "having he her here hers herself him himself his how however if in instead into is it its "
    "itself just know less let like ll look made make makes making many may me might mine more "
    "most much must my myself near need neither never no nor not nothing now of off often on "
    "once one only or other others our ours ourselves out over own per perhaps put quite rather "
    "re really said same saw say says see seen she should since so some something still such "
    "take than that the their theirs them themselves then there these they thing things think "
    "this those though through thus to together too toward two under until up upon us use used "
    "uses using ve very want was way we well went were what when where whether which while who "
    "whom whose why will with within without would yes yet you your yours yourself yourselves "
    "一个 一些 一样 一种 一直 不会 不能 不是 不过 与其 之后 之前 也是 什么 他们 以及 以后 "
    "以来 但是 你们 其中 其他 其实 再次 几个 则是 到了 只是 可以 可能 各种 同时 因为 因此 "
    "如何 如果 它们 对于 就是 已经 并且 很多 怎么 您的 我们 或者 所以 所有 才是 无法 时候 "
    "是否 最后 有些 有的 正在 每个 没有 然后 现在 甚至 由于 的是 的话 目前 知道 第一 至少 "
    "自己 虽然 许多 认为 该如 起来 这些 这个 这样 这种 进行 通过 那些 那个 都是 除了 需要 "
    "非常".split()
)


def words_of(texts: Collection[str], lowercase: bool = True) -> list[list[str]]:
    """The words of each text, in order and with repeats; no punctuation. `lowercase` also takes
    accents off, as WordPiece does."""
    normalizer, pattern = _normalizer(lowercase), _word_pattern()
    words_of_texts = (pattern.findall(normalizer.normalize_str(text)) for text in texts)
    return [
        words if text.isascii() else [part for word in words for part in _split_han(word)]
        for text, words in zip(texts, words_of_texts)
    ]


def log_odds(recent: Mapping[str, float], rest: Mapping[str, float]) -> dict[str, float]:
    """The z-score of each word of `recent`: how much more frequent it is than in `rest`.

    Log-odds ratio with an informative Dirichlet prior, equations 16, 20 and 22 of Monroe, Colaresi
    and Quinn 2008, "Fightin' Words" (https://doi.org/10.1093/pan/mpn018). The prior is both
    sides' words together, as if each side had 1,000 more words of it: it keeps rare words, whose
    ratios mean little, near 0.

    Args:
      recent, rest: the count of each word; fractions if rows are weighted.
    """
    if len({*recent, *rest}) == 1:  # nothing to compare with
        return dict.fromkeys(recent, 0.0)
    n_recent, n_rest = sum(recent.values()), sum(rest.values())
    scores = {}
    for word, count in recent.items():
        other = rest.get(word, 0.0)
        prior = _PRIOR * (count + other) / (n_recent + n_rest)
        a, b = count + prior, other + prior
        delta = math.log(a / (n_recent + _PRIOR - a)) - math.log(b / (n_rest + _PRIOR - b))
        scores[word] = delta / math.sqrt(1 / a + 1 / b)
    return scores


def find_hot_words(
    texts: Sequence[str], recent: np.ndarray, weights: np.ndarray, size: int, lowercase: bool = True
) -> dict[str, float]:
    """{word: z-score}, hottest first: at most `size` words that recent texts have more often.

    A text counts each of its words once, however often it repeats it. Stop words, words with a
    digit alone, of one letter, and of fewer than 3 recent texts are left out.

    Args:
      texts: n of them.
      recent: bool [n], the texts whose words are looked for.
      weights: float [n], the weight of each text, about 1 on average (its clicks).
    """
    counts: tuple = collections.Counter(), collections.Counter()
    n_rows: collections.Counter = collections.Counter()
    for words, is_recent, weight in zip(
        words_of(texts, lowercase), recent.tolist(), weights.tolist()
    ):
        side = counts[not is_recent]
        for word in set(words):
            side[word] += weight
        if is_recent:
            n_rows.update(set(words))
    scores = log_odds(*counts)
    candidates = [
        word
        for word, score in scores.items()
        if score > 0 and n_rows[word] >= _MIN_ROWS and _may_be_hot(word)
    ]
    return {word: scores[word] for word in sorted(candidates, key=lambda w: (-scores[w], w))[:size]}


def hot_words_of(
    rows: Sequence[Mapping[str, Any]], rates: np.ndarray, options: Any, lowercase: bool
) -> dict[str, float]:
    """The dictionary for training `rows`: that of options.hot_words_file, or their own words.

    Recent is the last quarter of the rows: by published; if nothing was published, the quarter
    with the highest click rates; without either, the end of the file. All rows of one article
    count as one text, a recent one for its click rate over the mean of the recent, if known.

    Args:
      rates: float [n], 0 where not known.
      options: has hot_words, the size (0: {}), and hot_words_file.
    """
    if not options.hot_words or not rows:
        return {}
    if options.hot_words_file:
        hot = read_hot_words(options.hot_words_file)
        return {word: hot[word] for word in list(hot)[: options.hot_words]}
    moments = np.array([row["time"] for row in rows], np.float64)
    if rates.any() and all(row["published"] is None for row in rows):
        moments = rates
    recent = np.zeros(len(rows), bool)
    recent[np.argsort(moments, kind="stable")[-max(1, len(rows) // 4) :]] = True
    of_article: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of_article.setdefault(row["article"] or row["headline"], []).append(i)
    texts = [
        "\n".join([article, *{rows[i]["headline"]: None for i in places}])
        for article, places in of_article.items()
    ]
    is_recent = np.array([recent[places].any() for places in of_article.values()])
    weights = np.array([rates[places].mean() for places in of_article.values()])
    known = is_recent & (weights > 0)
    scale = weights[known].mean() if known.any() else 1.0
    weights = np.where(known, weights / scale, 1.0)
    return find_hot_words(texts, is_recent, weights, options.hot_words, lowercase)


def read_hot_words(path: Any) -> dict[str, float]:
    """{word: weight} of a file with one word per line, and optionally a tab and its weight.

    Ordered by weight, and as in the file if weights are equal. Blank lines are skipped. A word may
    have spaces; one that ends in a number after a space or comma ("windows 11") needs a weight, so
    that the number cannot be mistaken for it. Raises UserError, with
    file and line, for one without, a weight that is not a positive number, more columns, a repeated
    word, text that is not UTF-8 or a file without words.
    """
    words: dict[str, float] = {}
    lines = read_lines(path, "a file with a hot word on each line")
    for number, line in enumerate(lines, 1):
        fields = [field.strip(" \r") for field in line.split("\t")]
        if fields == [""]:
            continue
        word = fields[0]
        weighted = _WEIGHTED.fullmatch(word) if len(fields) == 1 else None
        if weighted:
            raise UserError(
                f"{path}:{number}: found {word[:60]!r}, which looks like a word and its weight "
                f"with {weighted[1]!r} between. Write a tab between them; if all of it is the "
                "word, write a tab and its weight, such as 1, after it."
            )
        try:
            weight = float(fields[1]) if len(fields) > 1 else 1.0
        except ValueError:
            weight = math.nan
        if len(fields) > 2 or not word or not 0 < weight < math.inf:
            raise UserError(
                f"{path}:{number}: found {line.strip()[:60]!r}; a line has to be a "
                "word, or a word, a tab and its weight, a number above 0."
            )
        if word in words:
            raise UserError(
                f"{path}:{number}: {word!r} is there for the second time. Take one of "
                "the lines out."
            )
        words[word] = weight
    if not words:
        raise UserError(
            f"{path} holds no words. Give at least one, or set hot_words_file='' to "
            "have them computed."
        )
    return {word: words[word] for word in sorted(words, key=lambda word: -words[word])}


def write_hot_words(path: Any, words: Mapping[str, float]) -> None:
    """Writes the file that `read_hot_words` reads (may be on gs://)."""
    from etils import epath

    text = "".join(f"{word}\t{weight:.6g}\n" for word, weight in words.items())
    epath.Path(path).expanduser().write_bytes(text.encode())  # not in what the locale says


def hot_ids(
    hot: Collection[str], articles: Sequence[str], tokenizer: WordPiece, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [n, size] of hot words for each article, and the mask float32 [n, size].

    The article's own hot words come first, then the others; both hottest first, as `hot` has
    them. A word has the ids of all its pieces, which may be truncated to `size`; words with [UNK]
    are left out. A hot word that `words_of` cannot return (several words, three Chinese characters)
    is searched as a substring of the article.
    """
    ids = np.full((len(articles), size), tokenizer.pad_id, np.int32)
    mask = np.zeros((len(articles), size), np.float32)
    pieces = {
        word: ids_of_word.tolist()
        for word, ids_of_word in zip(hot, tokenizer.encode_batch(list(hot)))
        if len(ids_of_word) and tokenizer.unk_id not in ids_of_word
    }
    for i, first in enumerate(_hot_words_in(articles, list(pieces), tokenizer.lowercase)):
        row: list[int] = []
        for word in [*first, *(word for word in pieces if word not in first)]:
            if len(row) >= size:
                break
            row += pieces[word]
        ids[i, : len(row)] = row[:size]
        mask[i, : len(row)] = 1
    return ids, mask


def _hot_words_in(articles: Sequence[str], hot: list[str], lowercase: bool) -> list[list[str]]:
    """The hot words of each article, in the order of `hot`."""
    if not hot:
        return [[] for _ in articles]
    forms = [_normalizer(lowercase).normalize_str(word).strip() for word in hot]
    is_word = [words == [form] for words, form in zip(words_of(hot, lowercase), forms)]
    hot_of: dict[str, list[str]] = dict.fromkeys(articles, [])  # an article may have many rows
    for article, words in zip(hot_of, words_of(hot_of, lowercase)):
        present = set(words)
        whole = article if all(is_word) else _normalizer(lowercase).normalize_str(article)
        hot_of[article] = [
            word
            for word, form, single in zip(hot, forms, is_word)
            if (form in present if single else form in whole)
        ]
    return [hot_of[article] for article in articles]


def _may_be_hot(word: str) -> bool:
    return len(word) > 1 and word not in _STOP_WORDS and not word.isdecimal()


def _split_han(word: str) -> list[str]:
    if word.isascii():
        return [word]
    parts = []
    for part in _PARTS.findall(word):
        if re.match(f"[{_HAN}]", part) and len(part) > 1:
            parts += [part[i : i + 2] for i in range(len(part) - 1)]
        else:
            parts.append(part)
    return parts


@functools.cache
def _normalizer(lowercase: bool) -> Any:
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=lowercase, lowercase=lowercase
    )


@functools.cache
def _word_pattern() -> re.Pattern:
    """Runs of what is neither space nor BERT's punctuation: its categories, and ASCII's symbols.

    The library's own pre-tokenizer does the same, five times slower, as it also returns spans.
    """
    marks = [
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char).startswith("P")
    ]
    return re.compile(f"[^\\s{re.escape(''.join(marks) + '$+<=>^`|~')}]+")
