"""Runs of BERT that test_bert.py and test_bert_labelled.py share."""

import pytest

from bigjax import main
from tests.conftest import on_one_device, write_table
from tests.helpers import TINY_BERT


@pytest.fixture(scope="session")
def labelled_table(tmp_path_factory):
    """A table of 300 labelled texts."""
    return write_table(tmp_path_factory.mktemp("table") / "train.tsv", 300)


@pytest.fixture(scope="session")
def pretrained(corpus_file, cache_dir, compiled_programs, tmp_path_factory):
    """The work folder of a pre-training run."""
    workdir = str(tmp_path_factory.mktemp("bert") / "pretrained")
    flags = [
        f"--config={TINY_BERT}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={workdir}",
    ]
    with on_one_device(compiled_programs):
        assert main.main(["train", *flags]) == 0
    return workdir


@pytest.fixture(scope="session")
def labelled_flags(pretrained, labelled_table, cache_dir):
    """Flags of a labelled run that starts from the pre-trained one."""
    return [
        f"--config={TINY_BERT}:labelled",
        f"--config.data.train={labelled_table}",
        f"--config.init_from={pretrained}",
        "--config.model.preset=init_from",
        "--config.data.tokenizer.kind=init_from",
        f"--config.data.cache_dir={cache_dir}",
    ]
