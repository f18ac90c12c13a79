"""Preferences of files: their forms, and what is refused."""

import pytest

from bigjax.data import preference_rows
from bigjax.errors import UserError
from tests import helpers
from tests.chats import turn
from tests.unit.test_conversation_rows import write

ASK, GOOD, BAD = turn("user", "Why?"), turn("assistant", "So."), turn("assistant", "No.")
PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
RATING = {"prompt": "Why?", "completion": "So.", "label": True}


def section(**values):
    return helpers.data_section("preferences", "preference", **values)


def read(path, form="pairs", **values):
    options = dict(valid_fraction=0.0, test_fraction=0.0, **values)
    return preference_rows.read_parts(section(train=str(path), **options), form, ["train"])["train"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Why?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    ],
)
def test_all_forms_are_the_same_pair(tmp_path, suffix, row):
    path = write(tmp_path / f"a{suffix}", [{**row, "margin": None}, {**row, "margin": 0.5}])
    rows = read(path)
    for number, one in enumerate(rows, 1):
        assert one["messages"] == [ASK] and (one["chosen"], one["rejected"]) == (GOOD, BAD)
        assert one["where"] == f"{path}:{number}" and one["reference"] == [None, None]
    assert [one["margin"] for one in rows] == [0.0, 0.5]
    assert read(path, system="Be.")[0]["messages"] == [turn("system", "Be."), ASK]


def test_ratings_and_numbers_of_the_reference(tmp_path):
    rows = [
        {**RATING, "reference_completion": -1.5, "mismatched": "Late.", "reference_mismatched": -2},
        {"completion": [ASK, GOOD], "label": False},
    ]
    first, second = read(write(tmp_path / "a.jsonl", rows), "ratings")
    assert first["messages"] == second["messages"] == [ASK]
    assert (first["label"], second["label"]) == (True, False)
    assert first["reference"] == [-1.5, -2.0] and second["reference"] == [None]
    assert first["mismatched"] == turn("assistant", "Late.") and "mismatched" not in second
    scored = {**PAIR, "reference_chosen": -3.25, "reference_rejected": -4}
    (pair,) = read(write(tmp_path / "b.jsonl", [scored]))
    assert pair["reference"] == [-3.25, -4.0]


@pytest.mark.parametrize(
    "row, message",
    [
        ({**PAIR, "chosen": " "}, "the answer of 'chosen' is empty"),
        ({**PAIR, "rejected": "So."}, "'chosen' and 'rejected' are equal"),
        (
            {"chosen": [ASK, GOOD], "rejected": [turn("user", "Who?"), BAD]},
            "different turns before their last answers",
        ),
        ({"chosen": [ASK], "rejected": [ASK, BAD]}, "last message of 'chosen' is of the role 'u"),
        ({"chosen": "So.", "rejected": "No."}, "'chosen' is an answer without a prompt"),
        ({"prompt": "Why?", "chosen": "So."}, "needs 'chosen' and 'rejected', and 'prompt'"),
        ({**PAIR, "margin": "big"}, "'margin' holds the text 'big'; it has to be a finite number"),
        ({**PAIR, "margin": True}, "'margin' holds True"),
        (
            {"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]},
            "message 3 has the role 'assistant', as the one before",
        ),
        ({**RATING, "label": 1}, "'label' holds the number 1; it has to be true"),
        ({**RATING, "completion": ""}, "the answer of 'completion' is empty"),
        ({"prompt": "Why?", "completion": "So."}, "needs 'completion' and 'label'"),
        (RATING, "all 2 ratings of the train data are true"),
    ],
)
def test_wrong_rows_are_refused_with_their_place(tmp_path, row, message):
    form = "ratings" if "completion" in row else "pairs"
    path = write(tmp_path / "a.jsonl", [RATING if form == "ratings" else PAIR, row])
    with pytest.raises(UserError, match=message) as e:
        read(path, form)
    assert f"a.jsonl:{1 if 'all 2' in message else 2}" in str(e.value)


def test_a_margin_that_is_nan_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [{**PAIR, "margin": float("nan")}])
    with pytest.raises(UserError, match=r"a.parquet:1: 'margin' holds the number nan"):
        read(path)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(train="a.csv"), "preferences are read from .jsonl or .parquet"),
        (dict(train="docstrings:title"), "for preferences there is 'docstrings:questions'"),
        (dict(train=""), "data.train is empty.*preferences"),
    ],
)
def test_other_sources_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        preference_rows.read_parts(section(**values), "pairs")


@pytest.mark.usefixtures("fewer_docstrings")
def test_preferences_about_docstrings(cache_dir):
    data = section(train="docstrings:questions", cache_dir=str(cache_dir), valid_fraction=0.1)
    pairs, ratings = (preference_rows.read_parts(data, form) for form in preference_rows.FORMS)
    assert all(row["chosen"] != row["rejected"] for row in pairs["train"])
    words = lambda message: sorted(message["content"].split())
    shuffled = [words(r["chosen"]) == words(r["rejected"]) for r in pairs["train"]]
    assert 0.4 < sum(shuffled) / len(shuffled) < 0.6
    for split, rows in ratings.items():
        for row, pair in zip(rows, pairs[split], strict=True):
            assert row["messages"] == pair["messages"]
            assert row["completion"] == pair["chosen" if row["label"] else "rejected"]
    labels = [row["label"] for row in ratings["train"]]
    assert 0.4 < sum(labels) / len(labels) < 0.6
    titles = {name: {row["chosen"]["content"] for row in part} for name, part in pairs.items()}
    others = [row["rejected"]["content"] for row in pairs["valid"]]
    assert not {*others} & (titles["train"] - titles["valid"])


def test_the_system_prompt_is_that_of_the_prompt_or_of_a_column(tmp_path):
    system, other = turn("system", "Be brief."), turn("system", "Else.")
    prompt = [turn("user", "a")]
    answers = {"chosen": [*prompt, turn("assistant", "b")], "rejected": "c"}
    with_it = {"prompt": [system, *prompt], **answers}
    by_column = {"prompt": "a", "chosen": "b", "rejected": "c", "system": "Be brief."}
    for row in (with_it, by_column):
        (kept,) = read(write(tmp_path / "a.jsonl", [row]))
        assert kept["messages"] == [system, *prompt], row
    wrong = {**with_it, "chosen": [other, *answers["chosen"]]}
    with pytest.raises(UserError, match="and 'chosen' have different system messages"):
        read(write(tmp_path / "b.jsonl", [wrong]))
