"""Metrics of generated texts against a reference and the source text, and the lead-sentence
baseline.

ROUGE is by the rouge-score package, BLEU and chrF by sacrebleu, error rates by jiwer; the others
are ratios of counts.
"""

from collections.abc import Callable, Iterable, Sequence
import re
import unicodedata

import numpy as np

from bigjax.errors import UserError

METRICS = (
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "self_bleu",
    "distinct_1",
    "distinct_2",
    "copy_rate",
    "novel_2",
    "novel_4",
    "length",
)
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNSPACED = re.compile(  # Thai, Lao, Burmese, Khmer, kana
    "[\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]"
)
_APOSTROPHES = "['\u2018\u2019\u02bc]"
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")
# A full stop after a single capital letter or one of these is part of a name.
_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Gen", "Gov", "Sen", "Rep", "No", "vs")
_SENTENCE_END = re.compile(
    r"[。！？][。！？”’」』）]*"
    r"|(?<!\b[A-Z])"
    + "".join(rf"(?<!\b{title})" for title in _TITLES)
    + r"[.!?]+[\"'”’)\]]*(?=\s+[^a-z\s])|\n\s*\n"
)
_SELF_BLEU_SAMPLE = 200  # the time is quadratic in it


# Of candidates and their references, each {name: value}; see `compare`.
COMPARISONS: dict[str, Callable[[list[str], list[str]], dict[str, float]]] = {
    "bleu": lambda c, r: {"bleu": _bleu(c, r, bleu_tokenizer(r))},
    "chrf": lambda c, r: {"chrf": _chrf(c, r)},
    "rouge": lambda c, r: _rouge(c, r),
    "exact_match": lambda c, r: {
        "exact_match": float(np.mean([a.strip() == b.strip() for a, b in zip(c, r)]))
    },
    "wer": lambda c, r: {"wer": _word_errors(c, r)},
    "cer": lambda c, r: {"cer": _character_errors(c, r)},
    "per": lambda c, r: {"per": _word_errors(c, r)},
}


class _Tokenizer:
    """`words` as a tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def measure(
    candidates: list[str],
    references: list[str],
    sources: list[str],
    chinese: bool | None = None,
) -> dict[str, float]:
    """{name: value} of METRICS, of n candidates, each with a reference and a source.

    Texts are split by `words`.

    - rouge1, rouge2, rougeL: mean F1, 0 to 1, without stemming
      (https://aclanthology.org/W04-1013).
    - bleu: of the corpus, 0 to 100 (https://aclanthology.org/W18-6319).
    - self_bleu: mean BLEU, 0 to 100, of each candidate against all others; high if they are
      similar (https://arxiv.org/abs/1802.01886). Of a fixed sample of 200 if there are more;
      candidates without words are skipped.
    - distinct_1, distinct_2: different n-grams over n-grams of all candidates
      (https://arxiv.org/abs/1510.03055).
    - copy_rate: fraction of the candidates' words that are in their source; novel_2, novel_4:
      fraction of n-grams that are not in it (https://arxiv.org/abs/1704.04368, figure 6).
    - length: mean number of words.

    An empty candidate scores 0. A ratio with a zero denominator is 0.

    Args:
      chinese: whether BLEU uses sacrebleu's tokenizer `zh` instead of `13a`; None: if more than
        half of the references' words are Chinese characters.

    Raises UserError without candidates, or for lists of different lengths.
    """
    _check(candidates, references, sources)
    candidate_words = [words(text) for text in candidates]
    source_words = [words(text) for text in sources]
    split = bleu_tokenizer(references, chinese)
    return {
        **_rouge(candidates, references),
        "bleu": _bleu(candidates, references, split),
        "self_bleu": _self_bleu([c for c, s in zip(candidates, candidate_words) if s], split),
        "distinct_1": _distinct(candidate_words, 1),
        "distinct_2": _distinct(candidate_words, 2),
        "copy_rate": _copied(candidate_words, source_words, 1)[0],
        "novel_2": _copied(candidate_words, source_words, 2)[1],
        "novel_4": _copied(candidate_words, source_words, 4)[1],
        "length": float(np.mean([len(s) for s in candidate_words])),
    }


def compare(
    names: Sequence[str], candidates: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """{name: value} of some of COMPARISONS, of n candidates and their references.

    - bleu: of the corpus, 0 to 100 (https://aclanthology.org/W18-6319), of the words of
      `bleu_tokenizer`; chrf: chrF2 of the corpus, 0 to 100 (https://aclanthology.org/W15-3049).
    - rouge: mean F1 of rouge1, rouge2 and rougeL, as of `measure`.
    - exact_match: the share of candidates that equal their reference, but for white space around.
    - wer, cer: substitutions, insertions and deletions of words, or of characters, over those of
      all references; above 1 if there are very many insertions. per: the same of phonemes, written
      with spaces between.

    Raises UserError for an unknown name, without candidates, or for lists of different lengths.
    """
    check_names(names)
    _check(candidates, references, references)
    candidates, references = list(candidates), list(references)
    return {k: v for name in names for k, v in COMPARISONS[name](candidates, references).items()}


def check_names(names: Sequence[str], key: str = "metrics") -> None:
    """Raises UserError for a name that is not one of COMPARISONS."""
    for name in names:
        if name not in COMPARISONS:
            raise UserError(f"{key} has {name!r}; allowed: {', '.join(COMPARISONS)}.")


def compared(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the numbers that `compare` gives."""
    rouge = ("rouge1", "rouge2", "rougeL")
    return tuple(n for name in names for n in (rouge if name == "rouge" else (name,)))


def normalised(text: str) -> str:
    """NFKC, lower case, without punctuation and repeated white space: for errors of speech."""
    text = re.sub(_APOSTROPHES, "", unicodedata.normalize("NFKC", text).lower())
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    return " ".join("".join(kept).split())


def bleu_tokenizer(references: Sequence[str], chinese: bool | None = None) -> str:
    """The name of sacrebleu's tokenizer for these texts: zh for Chinese ones, char for those in
    Japanese, Thai and others whose words have no spaces between, else 13a."""
    letters = sum(c.isalpha() for text in references for c in text)
    if 4 * sum(len(_UNSPACED.findall(text)) for text in references) > letters > 0:
        return "char"
    return "zh" if (is_chinese(references) if chinese is None else chinese) else "13a"


def _bleu(candidates, references, split: str) -> float:
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=split, force=True)  # force: no warning of text that looks tokenized
    return float(bleu.corpus_score(candidates, [references]).score)


def _chrf(candidates, references) -> float:
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(candidates, [references]).score)


def _rouge(candidates, references) -> dict[str, float]:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Tokenizer())
    scores = [scorer.score(*pair) for pair in zip(references, candidates)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]}


def _word_errors(candidates, references) -> float:
    import jiwer

    return float(jiwer.wer(references, candidates))


def _character_errors(candidates, references) -> float:
    import jiwer

    return float(jiwer.cer(references, candidates))


def words(text: str) -> list[str]:
    """Lower-case words: each Chinese character, and each run of other letters and digits. English
    is split as by rouge-score."""
    return _WORD.findall(text.lower())


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether more than half of the words are Chinese characters."""
    han = re.compile(f"[{_HAN}]")
    flags = [bool(han.match(word)) for text in texts for word in words(text)]
    return 2 * sum(flags) > len(flags)


def sentences(text: str) -> list[str]:
    """The sentences of English or Chinese text, each on one line, without those that have no words.

    A blank line ends a sentence; a full stop that may belong to an abbreviation does not.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, None])]
    return [" ".join(piece.split()) for piece in pieces if words(piece)]


def lead_sentence(text: str) -> str:
    """The first sentence, which is a strong baseline for news; "" for an empty text."""
    return next(iter(sentences(text)), "")


def _check(candidates, references, sources) -> None:
    if not len(candidates) == len(references) == len(sources):
        raise UserError(
            f"There are {len(candidates)} candidates, {len(references)} references and "
            f"{len(sources)} sources. Each candidate needs one reference and one source."
        )
    if not candidates:
        raise UserError("There are no candidates to measure. Pass at least one.")


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of a list of words, in order."""
    return list(zip(*(tokens[i:] for i in range(n))))


def _self_bleu(candidates: list[str], split: str) -> float:
    from sacrebleu.metrics import BLEU

    if len(candidates) < 2:
        return 0.0
    if len(candidates) > _SELF_BLEU_SAMPLE:
        rng = np.random.default_rng(0)
        sample = rng.choice(len(candidates), _SELF_BLEU_SAMPLE, replace=False)
        candidates = [candidates[i] for i in sample]
    bleu = BLEU(tokenize=split, force=True, effective_order=True)  # for texts of under 4 words
    return float(
        np.mean(
            [
                bleu.sentence_score(c, candidates[:i] + candidates[i + 1 :]).score
                for i, c in enumerate(candidates)
            ]
        )
    )


def _distinct(candidates: list[list[str]], n: int) -> float:
    grams = [gram for tokens in candidates for gram in ngrams(tokens, n)]
    return len(set(grams)) / max(len(grams), 1)


def _copied(candidates: list[list[str]], sources: list[list[str]], n: int) -> tuple[float, float]:
    """(share of the candidates' n-grams that are in their source, share of those that are not)."""
    known = [
        gram in of_source
        for candidate, source in zip(candidates, sources)
        for of_source in [set(ngrams(source, n))]
        for gram in ngrams(candidate, n)
    ]
    total = max(len(known), 1)
    return sum(known) / total, (len(known) - sum(known)) / total
