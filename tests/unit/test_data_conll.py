"""bigjax.data.conll: columns by number, and files whose first column numbers the words."""

import pytest

from bigjax.data.tables import read_table
from bigjax.errors import UserError
from tests.unit.test_data_tables import checked, write

CONLL_U = (
    "# sent_id = 1\n# text = I don't go\n"
    "1\tI\tI\tPRON\tPRP\t_\t4\tnsubj\t_\t_\n"
    "2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_\n"
    "3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_\n"
    "3.1\tever\tever\tADV\t_\t_\t_\t_\t4:advmod\t_\n"
    "4\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_\n\n"
    "# sent_id = 2\n1\t#\t#\tSYM\tNN\t_\t0\troot\t_\t_\n\n"
)


@pytest.mark.parametrize("name", ["a.conll", "a.conllu"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_u_by_the_numbers_of_its_columns(tmp_path, name, end):
    path = write(tmp_path / name, CONLL_U.replace("\n", end))
    first, second = checked(path, ["1", "3"])
    assert first == {
        "1": ["I", "do", "n't", "go"],
        "3": ["PRON", "AUX", "PART", "VERB"],
        "where": f"{path}:3",
    }
    assert second == {"1": ["#"], "3": ["SYM"], "where": f"{path}:11"}
    assert [row["1"] for row in checked(path, ["1"])] == [first["1"], ["#"]]
    row = read_table(path, ["1", "3"])[0]["row"]
    assert list(row) == [*"0123456789"] and row["4"] == ["PRP", "VBP", "RB", "VB"]
    message = (
        r"a\.conllu?:3: the file is CoNLL-U, whose ten columns are ID, FORM, LEMMA, UPOS, .*"
        'data.columns.tokens="1"'
    )
    for columns in (["tokens"], ["tokens", "tags"], ["1", "tags"]):
        with pytest.raises(UserError, match=message):
            read_table(path, columns)
    with pytest.raises(UserError, match=r"a\.conllu?:3: there is no column 10; the line has 10"):
        read_table(path, ["1", "10"])


@pytest.mark.parametrize(
    "content",
    [
        "1 The DT O\n2 cat NN B\n\n1 It PRP O\n",
        "1\tThe\tO\n2\tcat\tB\n",
        "0 The O\n1 cat B\n\n0 It O\n",
        "1 The O\n2 cat B\n\n3 It O\n",  # numbered through the file
        "1 The O\n2-3 cats _\n2 cat B\n3 s B\n",
        "1 The DT O\n2 cat NN\n",
    ],
)
def test_a_column_that_numbers_the_words_is_no_token(tmp_path, content):
    path = write(tmp_path / "a.conll", content)
    with pytest.raises(UserError, match=r"a\.conll:1: the first of . columns .*numbers the words"):
        read_table(path, ["tokens", "tags"])
    row = checked(path, ["1", "tags"])[0]
    assert row["1"][:2] == ["The", "cat"] and len(row["1"]) == len(row["tags"]) <= 3


@pytest.mark.parametrize(
    "content, tokens, tags",
    [
        ("EU NNP B-NP B-ORG\nis VBZ B-VP O\n", ["EU", "is"], ["B-ORG", "O"]),  # CoNLL-2003
        ("EU NNP B-NP\nis VBZ B-VP\n", ["EU", "is"], ["B-NP", "B-VP"]),  # CoNLL-2000
        ("1 CD O\n\n2 CD O\n", ["1"], ["O"]),
        ("1 CD B\n3 CD O\n", ["1", "3"], ["B", "O"]),
        ("1\tB\n2\tO\n", ["1", "2"], ["B", "O"]),  # two columns: the words are numbers
        ("1-2 CD B\n1.1 CD O\na DT O\n", ["1-2", "1.1", "a"], ["B", "O", "O"]),
    ],
)
def test_conll_with_the_words_first(tmp_path, content, tokens, tags):
    path = write(tmp_path / "a.conll", content)
    row = checked(path, ["tokens", "tags"])[0]
    assert (row["tokens"], row["tags"]) == (tokens, tags)
    assert checked(path, ["0", "tags"])[0]["0"] == tokens
