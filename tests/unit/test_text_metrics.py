"""Metrics of generated texts: known values, Chinese, empty texts; hot words in them."""

import math

import pytest

from bigjax.errors import UserError
from bigjax.evals import text_metrics as tm
from bigjax.projects.seqgan import hot_word_metrics as hot

ARTICLE = (
    "Mr. Smith of the U.S. Senate flew to Paris on Monday. He met the new president! "
    "The talks, he said, were short."
)
NEWS = "北京今天下雪。市民出门赏雪，iPhone手机卖光了！明天天晴。"


def measure(candidates, references=None, articles=None, **options):
    blank = [""] * len(candidates)
    return tm.measure(candidates, references or blank, articles or blank, **options)


def test_rouge_equals_that_of_the_package():
    from rouge_score import rouge_scorer

    reference, candidate = "The cat's hat: 20 dogs sat there", "dogs sat; the cat's 20 hats"
    expected = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, candidate)
    scores = measure([candidate, ""], [reference, "x"])
    for name, score in expected.items():
        assert 0 < score.fmeasure < 1
        assert scores[name] == pytest.approx(score.fmeasure / 2)  # the empty one scores 0


def test_rouge_of_chinese_counts_characters():
    scores = measure(["北京下雨"], ["北京今天下雪"])
    assert scores["rouge1"] == pytest.approx(2 * 3 / (4 + 6))
    assert scores["rouge2"] == pytest.approx(2 * 1 / (3 + 5))
    assert scores["length"] == 4


def test_bleu_equals_that_of_the_package_in_both_languages():
    import sacrebleu

    for tokenize, candidate, gold in (
        ("13a", "the cat sat on a mat today", "the cat sat on the mat"),
        ("zh", "北京今天下大雪了", "北京今天下雪"),
    ):
        expected = sacrebleu.corpus_bleu([candidate], [[gold]], tokenize=tokenize).score
        assert 10 < expected < 90
        assert measure([candidate], [gold])["bleu"] == pytest.approx(expected)
    assert measure([candidate], [gold], chinese=False)["bleu"] != pytest.approx(expected)


@pytest.mark.parametrize("text", ["これはペンです", "นี่คือปากกา"])
def test_text_without_spaces_is_split_into_characters(text):
    assert tm.bleu_tokenizer([text]) == "char"
    assert tm.compare(["bleu"], [text[:-1] + "x"], [text])["bleu"] > 50
    assert tm.bleu_tokenizer(["a text with ペン in it"]) == "13a" != tm.bleu_tokenizer(["北京"])


def test_self_bleu_is_high_for_similar_candidates():
    same, other = "a quick brown fox jumps", "stocks fall as banks fail again"
    assert measure([same] * 3)["self_bleu"] == pytest.approx(100)
    assert measure([same, other])["self_bleu"] == 0
    assert measure([same, same, other, ""])["self_bleu"] == pytest.approx(200 / 3)
    assert measure([same, ""])["self_bleu"] == 0


def test_self_bleu_of_many_is_of_a_fixed_sample(monkeypatch):
    monkeypatch.setattr(tm, "_SELF_BLEU_SAMPLE", 4)
    candidates = [f"word{i % 3} of {i} and {i // 2}" for i in range(12)]
    sampled = measure(candidates)["self_bleu"]
    assert sampled == measure(candidates)["self_bleu"]
    monkeypatch.setattr(tm, "_SELF_BLEU_SAMPLE", 12)
    assert sampled != measure(candidates)["self_bleu"]


def test_distinct_counts_over_all_candidates():
    scores = measure(["a b a b", "a c"])
    assert scores["distinct_1"] == pytest.approx(3 / 6)
    assert scores["distinct_2"] == pytest.approx(3 / 4)


def test_coverage_is_of_hot_words_in_the_article():
    candidates = [
        "Smith in PARIS",
        "Trump in London",
        "Parisian hats",
        "Paris",
        "new  president",
        "Paris",
    ]
    articles = [ARTICLE, "Trump left London", ARTICLE, "nothing hot", ARTICLE, "a new president"]
    hot_words = ["Paris", "New President", "!"]
    assert hot.coverage(candidates, articles, hot_words) == pytest.approx(2 / 4)
    assert hot.coverage(["下雪了", "天晴"], [NEWS, NEWS], ["下雪", "iphone"]) == 1 / 2
    assert hot.coverage(["Paris"], ["Paris"], []) == 0


def test_copied_and_novel_ngrams():
    scores = measure(["Smith flew to Paris on Tuesday"], articles=[ARTICLE])
    assert scores["copy_rate"] == pytest.approx(5 / 6)
    assert scores["novel_2"] == pytest.approx(2 / 5)
    assert scores["novel_4"] == pytest.approx(2 / 3)
    copied = measure([tm.lead_sentence(NEWS)], articles=[NEWS])
    assert (copied["copy_rate"], copied["novel_2"], copied["novel_4"]) == (1, 0, 0)


def test_empty_candidates_score_zero():
    scores = measure([""], ["gold"], [ARTICLE])
    assert list(scores) == list(tm.METRICS)
    assert all(value == 0 and math.isfinite(value) for value in scores.values())
    assert hot.coverage([""], [ARTICLE], ["Paris"]) == 0


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="no candidates"):
        measure([])
    with pytest.raises(UserError, match="1 candidates, 2 references and 1 sources"):
        tm.measure(["a"], ["a", "b"], ["c"])


def test_chinese_is_detected():
    assert tm.is_chinese(["苹果公司发布iPhone"]) and not tm.is_chinese(["the word 北 means north"])


def test_sentences():
    assert tm.sentences(ARTICLE) == [
        "Mr. Smith of the U.S. Senate flew to Paris on Monday.",
        "He met the new president!",
        "The talks, he said, were short.",
    ]
    assert tm.sentences(NEWS) == [
        "北京今天下雪。",
        "市民出门赏雪，iPhone手机卖光了！",
        "明天天晴。",
    ]
    assert tm.sentences('He said: "Go." Acme Inc. rose 3.5 percent.\nNext\nline\n\nEnd') == [
        'He said: "Go."',
        "Acme Inc. rose 3.5 percent.",
        "Next line",
        "End",
    ]


def test_baselines():
    assert tm.lead_sentence(" 他说：“走吧！”然后走了。好。") == "他说：“走吧！”"
    assert tm.lead_sentence("Title only") == "Title only" and tm.lead_sentence(" \n") == ""
    assert hot.hot_word_headline(ARTICLE, ["president", "new"]) == "He met the new president!"
    assert hot.hot_word_headline(ARTICLE, ["nothing"]) == tm.lead_sentence(ARTICLE)
    assert hot.hot_word_headline(NEWS, ["手机", "赏雪"]).startswith("市民")
    assert hot.hot_word_headline("", ["a"]) == ""


def test_comparisons_with_references():
    got = tm.compare(
        tuple(tm.COMPARISONS), ["the cat sat", "a b", " same "], ["the cat sat down", "a c", "same"]
    )
    assert got["exact_match"] == pytest.approx(1 / 3)
    assert got["wer"] == got["per"] == pytest.approx(2 / 7)  # one deleted, one substituted
    assert got["cer"] == pytest.approx((5 + 1) / 23)
    assert got["rougeL"] == pytest.approx((6 / 7 + 0.5 + 1) / 3)
    assert 0 < got["chrf"] < 100
    perfect = tm.compare(tuple(tm.COMPARISONS), ["a b c d e"], ["a b c d e"])
    assert perfect == pytest.approx(
        dict(bleu=100, chrf=100, rouge1=1, rouge2=1, rougeL=1, exact_match=1, wer=0, cer=0, per=0)
    )
    assert tm.compared(("rouge", "cer")) == ("rouge1", "rouge2", "rougeL", "cer")
    assert tm.compare(["wer"], [""], ["two words"]) == {"wer": 1.0}


def test_text_is_normalised_for_error_rates():
    assert tm.normalised("cafe\u0301") == "café"
    for apostrophe in "'’ʼ‘":
        assert tm.normalised(f"It{apostrophe}s  a “Test”, N=5!") == "its a test n 5"
    assert tm.normalised("naïve 中文。") == "naïve 中文"


@pytest.mark.parametrize("names, message", [(["blue"], "metrics has 'blue'; allowed: bleu, chrf")])
def test_an_unknown_comparison_is_refused(names, message):
    with pytest.raises(UserError, match=message):
        tm.compare(names, ["a"], ["a"])
