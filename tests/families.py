"""A small config of every family with its batches, and their training on any devices."""

import json
import pathlib

import jax
import numpy as np

from bigjax import tasks
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.train import program as program_lib
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.step import unpack
from tests import helpers
from tests.audio_files import make_table
from tests.conftest import WORDS, write_table
from tests.e2e import test_headline
from tests.helpers import TINY, TINY_BERT, TINY_SEQ2SEQ
from tests.multidevice import test_seqgan_meshes

STEPS, SAVED_AT = 4, 2
# {family: config file}
LANGUAGE = {"gpt": TINY, "bert": TINY_BERT}
HEADS = {
    "labelled": TINY_BERT + ":labelled",
    "regress": TINY_BERT + ":labelled",
    "tag": TINY_BERT + ":tag",
    "answer": TINY_BERT + ":answer",
}
GENERATORS = {
    "seqgan": test_seqgan_meshes.TINY,
    "headline": test_headline.TINY,
    "headline rounds": test_headline.TINY,
}
PAIRS = {"t5": TINY_SEQ2SEQ, "lstm": TINY_SEQ2SEQ + ":lstm"}
RECORDINGS = {"whisper": TINY_SEQ2SEQ + ":whisper"}
IMAGES = {name: f"configs/{name}/digits.py:tiny" for name in ("vit", "resnet", "convnet", "mae")}
FILES = {**LANGUAGE, **HEADS, **GENERATORS, **PAIRS, **RECORDINGS, **IMAGES}
ADVERSARIAL = ("seqgan", "headline rounds")  # they draw tokens, which rounding may change


class Families:
    """(family, dtype of its computation) -> (config, batches). folder: for the labelled data."""

    def __init__(self, corpus_file: str, cache_dir: str, folder: pathlib.Path) -> None:
        self._corpus_file, self._cache_dir, self._folder = corpus_file, cache_dir, folder
        self._data: dict = {}

    def __call__(self, family: str, dtype: str):
        c = helpers.load_config(FILES[family])
        with c.unlocked():
            if family in LANGUAGE:
                c.data.sources.text.path = self._corpus_file
            elif family not in ("seqgan", *IMAGES):  # which need no file
                c.data.train = str(self._table(family))
            c.data.cache_dir = self._cache_dir
            if family == "regress":
                c.task.kind = "regress"
            if family in ADVERSARIAL:  # from the start
                c.task.update(mle_rounds=0, discriminator_rounds=0, teacher_forcing=0.1)
                c.task.rollouts = 2
            elif family == "headline":
                c.task.mle_rounds = STEPS
            elif family in IMAGES:
                c.train.batch_size, c.data.augment.trivial = 16, True
                if c.task.name == "image_classify":
                    c.task.mixup = 0.2
            else:
                c.model.n_layers = 1
                c.train.ema = 0.9
            c.model.dtype = dtype
        tasks.resolve(c)
        if family not in self._data:
            self._data[family] = tasks.build(c).load_data(lambda text: None)
        rows = c.train.batch_size
        return c, self._data[family].split("train", batch_size=rows, seed=c.seed)

    def _table(self, family: str) -> pathlib.Path:
        if family in ("labelled", "regress"):
            labels = ("left", "right") if family == "labelled" else ("0.5", "2")
            return write_table(self._folder / f"{family}.tsv", 100, labels=labels)
        if family in RECORDINGS:
            return pathlib.Path(make_table(self._folder, 24))
        if family in PAIRS:
            return write_pairs(self._folder / f"{family}.tsv")
        path = self._folder / f"{family}.{'conll' if family == 'tag' else 'jsonl'}"
        if family in GENERATORS:
            return test_headline.write_table(path)
        sentences = [[WORDS[(i + 3 * j) % len(WORDS)] for j in range(8)] for i in range(60)]
        path.write_text("".join(_tagged(s) if family == "tag" else _answered(s) for s in sentences))
        return path


def write_pairs(path: pathlib.Path, n: int = 100) -> str:
    """A table of texts, each with its second word as the target."""
    words = lambda i: [WORDS[(i + 5 * j) % len(WORDS)] for j in range(2 + i % 5)]
    rows = "".join(f"{' '.join(words(i))}\t{words(i)[1]}\n" for i in range(n))
    path.write_text("source\ttarget\n" + rows)
    return str(path)


def _tagged(words: list[str]) -> str:
    return "".join(f"{w} {'K' if w in WORDS[:10] else 'O'}\n" for w in words) + "\n"


def _answered(words: list[str]) -> str:
    context = " ".join(words)
    answers = [{"text": words[2], "answer_start": context.index(words[2])}]
    row = dict(question=f"which is {words[2]}", context=context, answers=answers)
    return json.dumps(row) + "\n"


def train(config_and_batches, mesh: jax.sharding.Mesh, folder=None) -> list[dict[str, float]]:
    """The metrics of each of STEPS steps on a mesh.

    folder: the state is saved there after SAVED_AT steps, and training that resumes from it has to
    give the same bits.
    """
    c, batches = config_and_batches
    with jax.set_mesh(mesh):
        program = program_lib.make(c, tasks.build(c), mesh)
        rows = c.train.batch_size

        def run(state, steps):
            history = []
            for i in steps:
                batch = sharding.put_batch(mesh, batches.batch_at(i), slice(0, rows), rows)
                state, metrics = program.step(state, None, batch)
                history.append(unpack(jax.device_get(metrics)))
            return state, history

        state = program.init()
        assert not any(x.dtype == "bfloat16" for x in jax.tree.leaves(state))
        state, first_metrics = run(state, range(SAVED_AT))
        if folder:
            checkpoints = Checkpoints(folder)
            checkpoints.save(SAVED_AT, state, {}, {})
            checkpoints.wait()
        last_state, last_metrics = run(state, range(SAVED_AT, STEPS))
        if folder:
            state, _ = checkpoints.restore_latest(program.abstract, print)
            checkpoints.close()
            resumed_state, resumed_metrics = run(state, range(SAVED_AT, STEPS))
            assert resumed_metrics == last_metrics
            jax.tree.map(np.testing.assert_array_equal, resumed_state, last_state)
    on = {d for x in jax.tree.leaves(last_state) for d in x.devices()}
    assert on == set(mesh.devices.flat)
    return first_metrics + last_metrics


def mesh_of(devices, **sizes: int) -> jax.sharding.Mesh:
    """A mesh over the first of the devices; sizes of its axes, 1 by default."""
    sizes = {**dict.fromkeys(mesh_lib.AXES, 1), **sizes}
    return mesh_lib.make_mesh(sizes, list(devices)[: int(np.prod([*sizes.values()]))])
