"""A work folder that version 0.1.0 wrote is refused, and nothing in it changes.

It is of four steps on a text file, made in a checkout of commit d0f9ff9.
"""

import pathlib
import tarfile

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import write_text

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "run_0_1_0.tar.gz"
TRAIN = [
    f"--config={helpers.TINY}",
    "--config.data.cache_dir=cache",
    "--config.data.sources.text.path=corpus.txt",
    "--config.data.test_fraction=0.3",
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", *TRAIN, "--workdir=run"],
        ["train", *TRAIN, "--workdir=new", "--config.init_from=run"],
        ["train", *TRAIN, "--workdir=new", "--config.resume_from=run"],
        ["config", "--workdir=run"],
        ["eval", "--workdir=run"],
        ["generate", "--workdir=run"],
        ["export", "--workdir=run", "--to=exported"],
    ],
    ids=lambda arguments: " ".join(a for a in arguments if a not in TRAIN),
)
def test_a_run_of_version_0_1_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(GOLDEN) as f:
        f.extractall(tmp_path, filter="data")
    write_text(tmp_path / "corpus.txt", 12)

    def content():
        return {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    before = content()
    assert len(before) > 5
    code = main.main(arguments)
    err = capsys.readouterr().err
    assert code == 2 and "it was written by bigjax 0.1" in err and "CHANGELOG" in err, err
    assert content() == before
