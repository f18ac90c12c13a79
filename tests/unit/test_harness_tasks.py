"""Task files of lm-evaluation-harness: their keys, rows, texts, examples, filters and metrics."""

import json
import math
import random

import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.evals.harness import scores, task_file
from bigjax.evals.harness.documents import FEWSHOT_SEED, Examples, documents, read_split

ROWS = [
    {"q": "One?", "choices": ["yes", "no"], "label": 0, "answer": "yes"},
    {"q": "Two?", "choices": ["a", "b", "c"], "label": 2, "answer": "c"},
    {"q": "Three?", "choices": ["x", "y"], "label": 1, "answer": "y"},
]
TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
}
GENERATE = dict(output_type="generate_until", doc_to_choice=None, doc_to_target="answer")


@pytest.fixture
def read(tmp_path):
    """read(keys, rows) -> the task; None removes a key."""

    def read(keys=(), rows=ROWS, name="task.json"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        task = {k: x for k, x in {**TASK, **dict(keys)}.items() if x is not None}
        (tmp_path / name).write_text(json.dumps(task))
        return task_file.read(str(tmp_path / name))

    return read


def made(task):
    return documents(task, read_split(task, task.split))


# --- The file ------------------------------------------------------------------------------------


def test_a_task_in_yaml_is_that_in_json(read, tmp_path):
    text = """
        task: mine
        dataset_path: json
        dataset_kwargs: {data_files: {test: rows.jsonl}}
        test_split: test
        output_type: multiple_choice
        doc_to_text: "Q: {{q}}\\nA:"
        doc_to_choice: choices
        doc_to_target: label
    """
    (tmp_path / "task.yaml").write_text(text)
    a, b = read(), task_file.read(str(tmp_path / "task.yaml"))
    assert a.raw == b.raw and a.files == b.files == {"test": [str(tmp_path / "rows.jsonl")]}
    assert [m.name for m in a.metrics] == ["acc", "acc_norm"] and a.version == "Yaml"
    assert a.target_delimiter == " " and a.fewshot_delimiter == "\n\n" and a.num_fewshot is None


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(doc_to_txt="x"), "unknown key 'doc_to_txt'. Did you mean 'doc_to_text'"),
        (dict(group="all"), "the key 'group' is not supported: it describes a group of tasks"),
        (dict(task=["a", "b"]), "the key 'task' is a list: it describes a group"),
        (dict(include="base.yaml"), "the key 'include' is not supported: copy the keys"),
        (dict(process_docs="!function utils.f"), "the key 'process_docs' is not supported"),
        (dict(doc_to_text="!function utils.f"), "!function utils.f is not supported: it is a Py"),
        (dict(use_prompt="promptsource:x"), "'use_prompt' is not supported"),
        (dict(gen_prefix="x"), "'gen_prefix' is not supported"),
        (dict(task=None), "the key 'task' is missing"),
        (dict(task=3), "task is the number 3; it has to be text"),
        (dict(output_type="greedy_until"), "output_type is 'greedy_until'; supported: multiple"),
        (dict(dataset_path="hellaswag"), "dataset_path is 'hellaswag'; supported: json, csv, par"),
        (dict(dataset_name="en"), "dataset_name is 'en'"),
        (dict(dataset_kwargs={}), "data_files holds null"),
        (dict(dataset_kwargs={"trust_remote_code": True}), "dataset_kwargs has 'trust_remote_co"),
        (dict(dataset_kwargs={"data_files": "https://x/y.jsonl"}), "is not a local file"),
        (dict(dataset_kwargs={"data_files": {"test": "rows.csv"}}), "has to end in .json or .jso"),
        (dict(test_split="valid"), "test_split is 'valid', but data_files has 'test'"),
        (dict(test_split=None), "no split is named. Set test_split to one of 'test'"),
        (dict(fewshot_split="dev"), "fewshot_split is 'dev'"),
        (dict(doc_to_choice=None), "needs the key 'doc_to_choice'"),
        (dict(doc_to_text=None), "the key 'doc_to_text' is missing"),
        (dict(doc_to_target=None), "the key 'doc_to_target' is missing"),
        (dict(num_fewshot=-1), "num_fewshot is -1; it must be at least 0"),
        (dict(num_fewshot=True), "num_fewshot is True; it has to be a whole number"),
        (dict(fewshot_config={"sampler": "balanced"}), "sampler is 'balanced'; supported: default"),
        (dict(fewshot_config={"samples": []}), "fewshot_config has 'samples'"),
        (dict(repeats=2), "repeats is 2, which is only for 'generate_until'"),
        (dict(filter_list=[{}]), "'filter_list' has no effect on output_type 'multiple_choice'"),
        (dict(generation_kwargs={"until": ["x"]}), "'generation_kwargs' has no effect"),
        (dict(metric_list=["acc"]), "metric_list holds the text 'acc'"),
        (dict(metric_list=[{"metric": "f1"}]), "'f1' is not supported for .*supported: acc, acc_n"),
        (dict(metric_list=[{"metric": "acc"}] * 2), "metric_list has 'acc' twice"),
        (dict(metric_list=[{"metric": "acc", "aggregation": "median"}]), "aggregation of 'acc'"),
        (dict(metric_list=[{"metric": "acc", "ignore_case": True}]), "has the option 'ignore_case"),
    ],
)
def test_what_is_not_supported_is_refused(read, keys, message):
    with pytest.raises(UserError, match=message):
        read(keys)


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(generation_kwargs={"num_beams": 2}), "generation_kwargs has 'num_beams'"),
        (dict(generation_kwargs={"max_gen_toks": 0}), "max_gen_toks is 0"),
        (dict(generation_kwargs={"max_gen_toks": "9"}), "max_gen_toks is the text '9'"),
        (dict(generation_kwargs={"do_sample": True}), "no temperature above 0"),
        (dict(filter_list=[{"name": "x"}]), "filter_list holds an object"),
        (
            dict(filter_list=[{"name": "x", "filter": [{"function": "regexp"}]}]),
            "function 'regexp' is not supported. Did you mean 'regex'",
        ),
        (
            dict(filter_list=[{"name": "x", "filter": [{"function": "lowercase"}]}]),
            "the filter 'x' ends with several answers",
        ),
        (
            dict(
                filter_list=[
                    {"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]},
                ]
            ),
            "is no regex",
        ),
        (
            dict(
                filter_list=[
                    {
                        "name": "x",
                        "filter": [
                            {"function": "take_first_k", "k": 2},
                            {"function": "take_first"},
                        ],
                    }
                ]
            ),
            "k=2, but repeats is 1",
        ),
        (dict(metric_list=[{"metric": "acc"}]), "'acc' is not supported for .*generate_until"),
    ],
)
def test_what_generation_does_not_support_is_refused(read, keys, message):
    with pytest.raises(UserError, match=message):
        read({**GENERATE, **keys})


def test_functions_of_yaml_and_other_files_are_refused(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("task: x\ndoc_to_text: !function utils.f\n")
    with pytest.raises(UserError, match="task.yaml:2: !function utils.f is not supported"):
        task_file.read(str(path))
    for name, text, message in (
        ("task.yaml", "- a", "holds a list; a task file has to be an object"),
        ("task.yaml", "a: [", "not YAML"),
        ("task.json", "{", "not JSON"),
        ("task.txt", "{}", "has to end in .json, .yaml or .yml"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            task_file.read(str(tmp_path / name))
    with pytest.raises(UserError, match="cannot read"):
        task_file.read(str(tmp_path / "none.json"))


def test_two_tasks_of_one_name_are_refused(read, tmp_path):
    read(), read(name="other.json")
    with pytest.raises(UserError, match="both define the task 'mine'"):
        task_file.read_all([str(tmp_path / "task.json"), str(tmp_path / "other.json")])


# --- Rows and texts ------------------------------------------------------------------------------


def test_texts_choices_and_targets(read):
    one, two, _ = made(read())
    assert (one.text, one.choices, one.target, one.answer) == (
        "Q: One?\nA:",
        ["yes", "no"],
        0,
        "yes",
    )
    assert two.target == 2 and two.where.endswith("rows.jsonl:2")


@pytest.mark.parametrize(
    "keys",
    [
        dict(doc_to_target="answer"),  # the text of the choice
        dict(doc_to_target="{{label}}"),
        dict(doc_to_target="{{choices.index(answer)}}"),
        dict(doc_to_choice="{{choices}}", doc_to_text="Q: {{q | regex_replace('z', '')}}\nA:"),
        dict(doc_to_text="Q: {{ q }}\nA:{% if false %}{% endif %}"),
    ],
)
def test_forms_of_choices_and_targets(read, keys):
    same = [(d.text, d.choices, d.target) for d in made(read())]
    assert [(d.text, d.choices, d.target) for d in made(read(keys))] == same


def test_constants_lists_and_several_targets(read):
    first, *_ = made(read(dict(doc_to_choice=["yes", "no"], doc_to_target=1)))
    assert (first.choices, first.target) == (["yes", "no"], 1)
    first, *_ = made(read(dict(doc_to_choice={"a": "yes", "b": "no"}, doc_to_target="{{[0, 1]}}")))
    assert first.target == [0, 1] and first.answers == ["yes", "no"]
    first, *_ = made(read({**GENERATE, "doc_to_target": "choices"}))
    assert first.answers == ["yes", "no"] and first.answer == "yes"
    first, *_ = made(read({**GENERATE, "doc_to_target": "label"}))
    assert first.answers == ["0"]


def test_templates_keep_line_ends_and_spaces(read):
    first, *_ = made(read(dict(doc_to_text="{{q}} \n", description="About {{q}}\n")))
    assert (first.text, first.description) == ("One? \n", "About One?\n")


@pytest.mark.parametrize(
    "keys, row, message",
    [
        (
            {},
            {"choices": ["a"], "label": 0},
            r":4: doc_to_text of .* 'q' is undefined. The row has",
        ),
        (
            {},
            {"q": "x", "choices": ["a"]},
            ":4: the row has no 'label', the column of doc_to_target",
        ),
        ({}, {"q": "x", "choices": ["a"], "label": 1}, ":4: the target is 1; .* 1 choices, 0 to 0"),
        ({}, {"q": "x", "choices": ["a"], "label": -1}, ":4: the target is -1"),
        (
            {},
            {"q": "x", "choices": ["a"], "label": "b"},
            ":4: the target 'b' is none of the 1 choi",
        ),
        ({}, {"q": "x", "choices": ["a"], "label": 0.5}, ":4: the target is the number 0.5"),
        ({}, {"q": "x", "choices": [], "label": 0}, ":4: doc_to_choice gives no choice"),
        ({}, {"q": "x", "choices": ["a", ""], "label": 0}, ":4: choice 2 is empty"),
        ({}, {"q": "x", "choices": "ab", "label": 0}, ":4: doc_to_choice gives the text 'ab'"),
        ({}, "[1]", ":4: found a list"),
        ({}, "{", ":4: not JSON"),
        (
            dict(doc_to_choice="{{q}}"),
            ROWS[0],
            r":1: doc_to_choice of .* gives 'One\?'; it has to g",
        ),
        (dict(doc_to_text="label"), ROWS[0], ":1: doc_to_text gives the number 0, .*not supported"),
        (dict(doc_to_text="question"), ROWS[0], "doc_to_text is 'question', which is no column of"),
        (dict(doc_to_text="{{q.__class__}}"), ROWS[0], ":1: doc_to_text .* the attribute '__class"),
        (dict(doc_to_text="{% for x in q %}"), ROWS[0], ":1: doc_to_text of .*line 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_their_place(read, keys, row, message):
    with pytest.raises(UserError, match=message):
        made(read(keys, [*ROWS, row]))


def test_a_template_that_never_ends_is_stopped(read):
    text = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="rows.jsonl:1: doc_to_text of .* does not end within"):
        made(read(dict(doc_to_text=text), ROWS[:1]))


def test_empty_files_are_refused(read):
    with pytest.raises(UserError, match="holds no rows"):
        made(read(rows=[]))


def test_json_lists_csv_and_parquet(read, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    want = [(d.text, d.choices, d.target) for d in made(read())]
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    lines = ["q,label,x,n", *(f'{r["q"]},{r["label"]},"a, {i}",{i}.5' for i, r in enumerate(ROWS))]
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "Four?,,z,"]) + "\n")
    for kind, name in (("json", "rows.json"), ("parquet", "rows.parquet")):
        task = read(dict(dataset_path=kind, dataset_kwargs={"data_files": {"test": name}}))
        assert [(d.text, d.choices, d.target) for d in made(task)] == want, name
    task = read(dict(dataset_path="csv", dataset_kwargs={"data_files": {"test": "rows.csv"}}))
    rows = [row.doc for row in read_split(task, "test")]
    assert rows[1] == {"q": "Two?", "label": 2, "x": "a, 1", "n": 1.5}
    assert rows[3] == {"q": "Four?", "label": None, "x": "z", "n": None}
    with pytest.raises(UserError, match="rows.csv:5: the row has no 'label'"):
        made(read({**task.raw, "doc_to_choice": ["a", "b", "c"]}))


# --- Examples ------------------------------------------------------------------------------------


def contexts(task, n):
    known = made(task)
    examples = Examples(task, n, known)
    return [examples.of(d) for d in known]


def test_the_first_rows_are_examples_but_for_the_row_itself(read):
    texts = ["Q: One?\nA: yes\n\n", "Q: Two?\nA: c\n\n", "Q: Three?\nA: y\n\n"]
    task = read(dict(fewshot_config={"sampler": "first_n"}))
    assert contexts(task, 1) == [texts[1], texts[0], texts[0]]
    assert contexts(task, 2) == [texts[1] + texts[2], texts[0] + texts[2], texts[0] + texts[1]]
    assert contexts(task, 0) == ["", "", ""]
    with pytest.raises(UserError, match="num_fewshot=3 needs 4 rows, but the split 'test' has 3"):
        contexts(task, 3)


def test_examples_are_drawn_as_in_the_harness(read, tmp_path):
    """random.Random(1234).sample for each document in turn, of all rows of another split."""
    many = [{**ROWS[0], "q": f"Q{i}?"} for i in range(9)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    files = {"data_files": {"test": "rows.jsonl", "dev": "dev.jsonl"}}
    task = read(dict(dataset_kwargs=files, fewshot_split="dev", target_delimiter="|",
                     fewshot_delimiter="#"))  # fmt: skip
    drawn = random.Random(FEWSHOT_SEED)
    want = ["".join(f"Q: Q{i}?\nA:|yes#" for i in drawn.sample(range(9), 4)) for _ in ROWS]
    assert contexts(task, 4) == want and len({*want}) == 3


# --- Filters and metrics -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps, answers, want",
    [
        ([], [" a", "b"], " a"),
        ([dict(function="remove_whitespace")], ["  a"], " a"),
        ([dict(function="lowercase")], ["AB"], "ab"),
        ([dict(function="uppercase")], ["ab"], "AB"),
        ([dict(function="regex")], ["x #### 1,200 y"], "1,200"),
        ([dict(function="regex", regex_pattern=r"(\d+)")], ["a"], "[invalid]"),
        ([dict(function="regex", regex_pattern=r"(\d+)", group_select=-1)], ["1 2 3"], "3"),
        ([dict(function="regex", regex_pattern=r"(a)|(b)", fallback="?")], ["xb"], "b"),
        ([dict(function="regex", regex_pattern=r"(a)|(b)", fallback="?")], ["c"], "?"),
        ([dict(function="majority_vote")], ["a", "b", "b"], "b"),
        (
            [dict(function="take_first_k", k=2), dict(function="majority_vote")],
            ["a", "b", "b"],
            "a",
        ),
    ],
)
def test_filters(steps, answers, want):
    entry = {"name": "f", "filter": [*steps, {"function": "take_first"}]}
    (pipeline,) = scores.filters([entry], 3, "t").values()
    assert scores.filtered(answers, pipeline) == want


@pytest.mark.parametrize(
    "options, answer, want",
    [
        ({}, "Yes", 1),
        ({}, "yes", 0),
        (dict(ignore_case=True), "yES", 1),
        (dict(ignore_punctuation=True), "Yes!", 1),
        (dict(ignore_numbers=True), "Y3es", 1),
        (dict(regexes_to_ignore=[r"^A: ", "x"]), "A: Yxes", 1),
    ],
)
def test_exact_match(options, answer, want):
    assert scores.exact_match(answer, ["no", "Yes"], options) == want


def test_metrics_of_choices():
    """acc takes the most likely choice, acc_norm that with the most per character."""
    of = lambda gold: scores.of_choices([-2.0, -3.0], [False, True], ["a", "abc"], gold)
    assert of([0]) == {"acc": 1, "acc_norm": 0, "exact_match": 0}
    assert of([1]) == {"acc": 0, "acc_norm": 1, "exact_match": 1}
    assert of([0, 1]) == {"acc": 1, "acc_norm": 1, "exact_match": 1}


def test_aggregated_metrics_and_their_errors():
    value, error = scores.aggregated("acc", [1, 0, 0, 1, 1])
    assert value == 0.6 and error == pytest.approx(np.std([1, 0, 0, 1, 1], ddof=1) / math.sqrt(5))
    assert scores.aggregated("acc", [1.0]) == (1.0, None)
    value, error = scores.aggregated("perplexity", [-1.0, -2.0, -6.0])
    assert value == pytest.approx(math.exp(3))
    # the bootstrap of the harness
    draws = np.random.default_rng(0).choice([-1.001, -1.0, -0.999], (20_000, 3))
    small = scores.aggregated("perplexity", [-1.001, -1.0, -0.999])[1]
    scale = math.sqrt(2 / 3)  # a bootstrap divides by n, not by n - 1
    assert np.exp(-draws.mean(1)).std() == pytest.approx(small * scale, rel=0.03)
    items = [(-10.0, 4), (-2.0, 2)]
    assert scores.aggregated("word_perplexity", items) == (pytest.approx(math.exp(2)), None)
    assert scores.aggregated("bits_per_byte", items) == (pytest.approx(2 / math.log(2)), None)
    assert scores.aggregated("word_perplexity", [(-1e6, 1)])[0] == math.inf
    value, _ = scores.aggregated("bleu", [("a b c d e", "a b c d e"), ("x y z w v", "x y z w v")])
    assert value == pytest.approx(100)
    assert scores.n_words("a b\n c") == 3
