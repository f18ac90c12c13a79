"""Allowed values of config keys: every number of every config, and values on the command line."""

import dataclasses
import json
import math
import re
import typing

import pytest

from bigjax import bounds, config, modules
from bigjax.arguments import Arguments
from bigjax.config.keys import RANGES, range_of
from bigjax.config.override import parse
from bigjax.errors import UserError
from bigjax.infer import generate
from bigjax.projects.seqgan import generation_options

MODULES = {
    "models": (
        *("gpt", "bert", "convnet", "resnet", "seq2seq", "t5", "vit", "whisper"),
        *("seqgan.model", "seqgan.headline_model"),
    ),
    "tasks": (
        *("causal_lm", "mlm_nsp", "classify", "tag", "answer", "image_classify", "mae"),
        *("grpo", "ppo", "preference", "reward", "seq2seq", "sft"),
        *("span_corruption", "transcribe"),
        *("seqgan.oracle", "seqgan.headline"),
    ),
    "data": (
        "audio",
        "conversations",
        "preferences",
        "prompts",
        "text",
        "labelled",
        "images",
        "text_to_text",
        "seqgan.headline_data",
        "seqgan.oracle_data",
    ),
    "data.sources": ("docstrings", "jsonl", "text", "tfds"),
    "data.tokenizers": (
        *("bpe", "bytes", "init_from", "sentencepiece", "tokenizer_json", "whisper", "wordpiece"),
    ),
    "evals": (
        *("alignment", "fewshot", "generation", "loss", "metrics", "pictures", "sample"),
        *("seqgan.headlines_eval", "seqgan.oracle_eval"),
    ),
}
# Keys of which -1 is a value.
NEGATIVE = {"mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor"}


def whole_config():
    """new_config with an evaluation."""
    c = config.new_config()
    with c.unlocked():
        c.evals = dict(valid=dict(kind="loss", every=1))
    return c


def numeric_keys() -> list[str]:
    return [k for k, v in config.sorted_leaves(whole_config()) if not isinstance(v, (bool, str))]


def with_value(key: str, value):
    c = whole_config()
    *parents, last = key.split(".")
    with c.unlocked():
        node = config.get(c, ".".join(parents)) if parents else c
        node[last] = value
    return c


def refused(key: str, value) -> bool:
    try:
        config.check_values(with_value(key, value))
    except UserError as e:
        assert f"config.{key} is " in str(e), e
        return True
    except TypeError:  # ml_collections': a float for a whole number
        return True
    return False


def test_every_number_of_a_config_has_a_range():
    keys = numeric_keys()
    assert len(keys) > 25 and all(range_of(key) for key in keys)
    used = {p for p in RANGES for k in keys if range_of(k) is RANGES[p]}
    assert used == {*RANGES} and not refused("seed", 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -2, 2**32, 10**30])
def test_invalid_numbers_are_refused(value):
    for key in numeric_keys():
        small = isinstance(config.get(whole_config(), key), int) or abs(value) < 2**32
        if value > 0 and not math.isinf(value) and not small:
            continue  # a large float may be meant
        assert refused(key, value) or value == -1 and key in NEGATIVE, key


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("optim.weight_decay", -1.0, "at least 0"),
        ("optim.b1", 1.5, r"in \[0, 1\)"),
        ("optim.b1", 1.0, r"in \[0, 1\)"),
        ("optim.layer_decay", 0.0, r"in \(0, 1\]"),
        ("optim.eps", 0.0, "positive"),
        ("train.early_stop.min_delta", -5.0, "at least 0"),
        ("seed", 2**32, r"in \[0, 4294967295\]"),
        ("seed", -1, r"in \[0, 4294967295\]"),
        ("train.steps", 2**31, "at most 2,147,483,647"),
        ("optim.eps", 1e-60, "0.0 in float32"),
        ("optim.learning_rate", 1e39, "inf in float32"),
        ("optim.clip_norm", 1e-40, "0.0 in float32"),
        ("optim.b2", 1 - 1e-11, r"1.0 in float32.* in \[0, 1\)"),
    ],
)
def test_messages_for_invalid_numbers(key, value, words):
    with pytest.raises(UserError, match=f"config.{key} is .*{words}"):
        config.check_values(with_value(key, value))


def test_the_ends_of_ranges_are_accepted():
    for key, value in (
        ("optim.b1", 0.0),
        ("optim.layer_decay", 1.0),
        ("seed", 2**32 - 1),
        ("optim.eps", 2.0**-126),
        ("optim.b2", 1 - 2**-24),
        ("optim.weight_decay", 3.4028234e38),
    ):
        config.check_values(with_value(key, value))


def classes():
    """(Config, section) of all modules and of their nested sections."""
    named = [(room, name) for room, names in MODULES.items() for name in names]
    sections = {"models": "model", "tasks": "task", "evals": "evals.valid"}

    def walk(cls, where):
        yield cls, where
        for field, kind in typing.get_type_hints(cls).items():
            for inner in (kind, *typing.get_args(kind)):
                if dataclasses.is_dataclass(inner):
                    yield from walk(inner, f"{where}.{field}")

    for room, name in named:
        yield from walk(modules.find(room, name, "x").Config, sections.get(room, room))


def ranges_of(cls) -> dict:
    return getattr(cls, "RANGES", {})


def test_all_modules_are_checked():
    for room, names in MODULES.items():
        with pytest.raises(UserError) as e:
            modules.find(room, "?", "x")
        have = re.search("Allowed: (.*?)[.] Name a module", str(e.value))[1].split(", ")
        assert [*have] == sorted(n for n in names if "." not in n)


def test_every_number_of_a_module_has_a_range():
    sections = 0
    for cls, where in classes():
        types = typing.get_type_hints(cls)
        numbers = {
            f.name
            for f in dataclasses.fields(cls)
            if {types[f.name], *typing.get_args(types[f.name])} & {int, float}
        }
        assert numbers == {*ranges_of(cls)}, cls
        sections += bool(numbers) and where.startswith(("data", "evals"))
    assert sections > 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 2**31, True, None, "1"])
def test_invalid_fields_of_modules_are_refused(value):
    for cls, where in classes():
        types = typing.get_type_hints(cls)
        for name, allowed in ranges_of(cls).items():
            if value == 2**31 and (float in (types[name], *typing.get_args(types[name]))):
                continue
            if value == 2**31 and allowed == bounds.SEED:
                continue
            if value == -1 and allowed == bounds.FINITE:
                continue
            origin = typing.get_origin(types[name])
            required = {
                f.name: "text"
                for f in dataclasses.fields(cls)
                if f.default is f.default_factory is dataclasses.MISSING
            }
            given = (value,) if origin is tuple else {"a": value} if origin is dict else value
            section = {**required, name: given}
            with pytest.raises(UserError, match=f"config.{where}.{name}|{where}.{name}"):
                config.build(cls, section, where)


def test_numbers_of_sections_within_a_section():
    c = config.new_config()
    with c.unlocked():
        c.data = dict(name="text", sources=dict(text=dict(kind="text", path="x", weight=0.0)))
        c.evals = dict(oracle=dict(kind="seqgan.oracle_eval", every=1, temperatures=(1.0, 0.0)))
    with pytest.raises(UserError, match="config.data.sources.text.weight is 0.0; .*positive"):
        modules.options(c, "data")
    with pytest.raises(UserError, match="config.evals.oracle.temperatures is .*each must be pos"):
        modules.options(c, "evals.oracle")


def test_numbers_of_a_request():
    for make, fields in (
        (
            generate.Options,
            {"temperature": math.nan, "top_k": -1, "top_p": 0.0, "max_new_tokens": 0},
        ),
        (generate.Options, {"temperature": math.inf, "top_p": 1.5}),
        (generate.Options, {"temperature": -1.0, "top_p": math.nan}),
        (
            generation_options.GenerationOptions,
            {"temperature": math.nan, "seed": -1, "real_weight": math.inf},
        ),
        (generation_options.GenerationOptions, {"click_weight": math.nan, "seed": 2**32}),
    ):
        for name, value in fields.items():
            with pytest.raises(UserError, match=name):
                make(**{name: value})


# --- What the command line makes of texts -----------------------------------------------------


@pytest.mark.parametrize(
    "text, values",
    [
        ("0,1", ("0", "1")),
        ("(0, 1)", ("0", "1")),
        ("[a,b]", ("a", "b")),
        ("'a, b','c'", ("a, b", "c")),
        ('"it\'s",x', ("it's", "x")),
        ("a,", ("a",)),
        ("a", ("a",)),
        ("", ()),
        ("()", ()),
        ("''", ("",)),
        ("1e5,007,True,None,-1, x y ", ("1e5", "007", "True", "None", "-1", "x y")),
        ("(a),(b)", ("(a)", "(b)")),
        ("(cut),x", ("(cut)", "x")),
        ("日本,é", ("日本", "é")),
    ],
)
def test_a_tuple_of_texts_holds_texts(text, values):
    assert parse(text, tuple[str, ...], "here") == values


def test_other_tuples():
    assert parse("-1,2.5", tuple[float, ...], "here") == (-1.0, 2.5)
    assert parse("1, 2", list[int], "here") == [1, 2]
    for text, kind, words in (
        ("1,x", tuple[int, ...], "'x'"),
        ("1.5", tuple[int, ...], "an integer"),
        ("a,,b", tuple[str, ...], "separated by commas"),
        ("true", tuple[float, ...], "a number"),
    ):
        with pytest.raises(UserError, match=words):
            parse(text, kind, "here")


def resolved(*arguments, file="configs/bert/finetune.py"):
    return Arguments([f"--config={file}", *arguments]).config()[0]


def test_labels_and_weights_of_a_task_on_the_command_line():
    c = resolved("--config.task.labels=0,1", "--config.task.label_weights=1,2.5")
    assert c.task.labels == ("0", "1") and c.task.label_weights == (1.0, 2.5)
    with pytest.raises(UserError, match=r"label_weights=1,x.*a number, not 'x'"):
        resolved("--config.task.label_weights=1,x")


@pytest.mark.parametrize(
    "labels, words",
    [
        ((0, 1), r"task.labels, entry 0 must be a string, but is int 0: write '0'"),
        (("a", True), "entry 1 must be a string, but is bool True"),
        ("ab", r"must be a tuple, but is str 'ab'. One entry is written \('ab',\)"),
        (3, "must be a tuple"),
    ],
)
def test_labels_that_are_not_strings_are_refused(labels, words):
    c = config.new_config()
    with c.unlocked():
        c.task = dict(name="classify", labels=labels)
    with pytest.raises(UserError, match=words):
        modules.options(c, "task")


def shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@pytest.mark.parametrize(
    "file",
    [
        "configs/gpt/docstrings.py",
        "configs/bert/docstrings.py",
        "configs/bert/finetune.py:tiny",
        "configs/seqgan/oracle.py",
        "configs/seqgan/headlines.py",
    ],
)
def test_every_key_can_be_overridden(file):
    """An override with the printed value keeps it the same, also if it is empty or a list."""
    c = resolved(file=file)
    leaves = dict(config.sorted_leaves(c))
    again = resolved(*(f"--config.{k}={shown(v)}" for k, v in leaves.items()), file=file)
    assert dict(config.sorted_leaves(again)) == leaves


def test_temperatures_can_be_overridden():
    c = resolved("--config.evals.oracle.temperatures=0.8,1.2", file="configs/seqgan/oracle.py")
    assert list(c.evals.oracle.temperatures) == [0.8, 1.2]


# --- A saved config ---------------------------------------------------------------------------


def test_an_invalid_saved_config_is_refused():
    good = json.loads(config.to_json(whole_config()))
    assert config.from_json(json.dumps(good), "x").train.steps == 1000

    def broken(change):
        stored = json.loads(json.dumps(good))
        change(stored)
        return json.dumps(stored)

    for text, words in (
        ("[1]", "JSON list"),
        ("null", "JSON NoneType"),
        ("{", "not valid JSON"),
        (b'{"seed": "\xff"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (broken(lambda c: c.update(new=1)), "Unknown config key 'new'"),
        (broken(lambda c: c.update(seed="1")), "config.seed must be an integer, but is str"),
        (broken(lambda c: c.update(seed=True)), "config.seed must be an integer, but is bool"),
        (broken(lambda c: c["optim"].update(b1=None)), "config.optim.b1 must be a number"),
        (broken(lambda c: c.update(optim=[])), "config.optim is a section"),
        (broken(lambda c: c.update(evals=[1])), "config.evals is a section"),
        (broken(lambda c: c["evals"].update(valid=3)), "config.evals.valid is a section"),
        (broken(lambda c: c["evals"]["valid"].update(every="x")), "evals.valid.every must be"),
        (broken(lambda c: c["evals"].update({"a.b": {}})), "x is not the config"),
        (broken(lambda c: c.update(model={})), "config.model.name"),
        (broken(lambda c: c.update(model=3)), "config.model is a section"),
    ):
        with pytest.raises(UserError, match=words):
            config.from_json(text, "x")


def test_an_int_is_accepted_for_a_float():
    stored = json.loads(config.to_json(whole_config()))
    stored["optim"]["weight_decay"] = 0
    stored["evals"]["valid"].update(kind="seqgan.oracle_eval", temperatures=[1])
    c = config.from_json(json.dumps(stored), "x")
    modules.fill(c)
    assert type(c.optim.weight_decay) is float and [*c.evals.valid.temperatures] == [1.0]
    assert type(c.evals.valid.temperatures[0]) is float
