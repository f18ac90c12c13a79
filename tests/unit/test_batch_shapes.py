"""Task.batch_shapes, which a plan goes by, against the batches that the data give."""

import json

import numpy as np
import pytest

from bigjax import tasks
from tests import helpers


def load(name, cache_dir, corpus_file, tmp_path):
    c = helpers.load_config(f"tests/{name}.py")
    with c.unlocked():
        c.data.cache_dir = cache_dir
        if name == "tiny_headline":
            c.data.train, c.data.columns.tags = str(tmp_path / "rows.jsonl"), ""
            c.data.tokenizer.vocab_size = 60
            rows = [
                {
                    "headline": f"a title of {i}",
                    "article": f"the text of number {i} " * 5,
                    "clicks": i,
                    "shown": 100,
                }
                for i in range(60)
            ]
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        elif name != "tiny_seqgan":
            c.data.sources.text.path = corpus_file
    return c


@pytest.mark.parametrize(
    "name, steps", [("tiny", 1), ("tiny_bert", 1), ("tiny_seqgan", 6), ("tiny_headline", 4)]
)
def test_shapes_are_those_of_batches(name, steps, cache_dir, corpus_file, tmp_path):
    check(load(name, cache_dir, corpus_file, tmp_path), steps)


@pytest.mark.parametrize(
    "task, kind, rows",
    [
        ("classify", {"labels": ("a", "b")}, [("some words", "a"), ("other words", "b")]),
        ("classify", {"kind": "regress"}, [("some words", 1.5), ("other words", 2.0)]),
        ("tag", {"labels": ("X", "Y")}, [(["some", "words"], ["X", "Y"]), (["words"], ["Y"])]),
    ],
)
def test_shapes_of_labelled_batches(task, kind, rows, cache_dir, tmp_path):
    c = helpers.load_config("tests/tiny_bert.py:labelled")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": x, "label": y}) + "\n" for x, y in rows * 10))
    with c.unlocked():
        c.data.cache_dir, c.task = cache_dir, dict(name=task, **kind)
        c.data.train = c.data.valid = c.data.test = str(path)
        c.data.columns = dict(tokens="text", tags="label") if task == "tag" else {}
        c.data.tokenizer.vocab_size, c.data.packing = 25, False
        c.train.batch_size = 4
    check(helpers.filled(c), 1)


def check(c, steps):
    task = tasks.build(c)
    batches = task.load_data(log=lambda text: None).split(
        "train", batch_size=c.train.batch_size, seed=0
    )
    describe = lambda tree: {
        k: describe(x) if isinstance(x, dict) else (x.shape, np.dtype(x.dtype))
        for k, x in tree.items()
    }
    for step in range(steps):
        want = describe(batches.batch_at(step))
        assert describe(task.batch_shapes(c.train.batch_size, step)) == want, step
