"""BERT that the modules of BERT's tests fine-tune: pre-trained once per module."""

import pathlib
import random

import pytest

from bigjax import main
from tests.conftest import WORDS

TINY_BERT = str(pathlib.Path(__file__).parent.parent / "tiny_bert.py")


def write_table(path, n, seed=0, labels=("left", "right")):
    """Texts of words of the first half of WORDS or of the second; the label says which."""
    rng, half = random.Random(seed), len(WORDS) // 2
    with open(path, "w", encoding="utf-8") as f:
        f.write("id\ttext\tlabel\n")
        for i in range(n):
            k = rng.randrange(2)
            text = " ".join(rng.choices(WORDS[k * half : (k + 1) * half], k=rng.randrange(3, 12)))
            f.write(f"{i}\t{text}\t{labels[k]}\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def table(folder):
    return write_table(folder / "train.tsv", 300)


@pytest.fixture(scope="module")
def pretrained(one_device, corpus_file, cache_dir, folder):
    """A pre-training run."""
    flags = [
        f"--config={TINY_BERT}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={folder}/pre",
    ]
    assert main.main(["train", *flags]) == 0
    return f"{folder}/pre"


@pytest.fixture(scope="module")
def flags(pretrained, table, cache_dir):
    return [
        f"--config={TINY_BERT}:labelled",
        f"--config.data.train={table}",
        f"--config.init_from={pretrained}",
        "--config.model.preset=init_from",
        "--config.data.tokenizer.kind=init_from",
        f"--config.data.cache_dir={cache_dir}",
    ]
