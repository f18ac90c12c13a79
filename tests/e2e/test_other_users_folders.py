"""Folders of another user: commands that only read work, others are refused in one sentence."""

import encodings.utf_8_sig  # noqa: F401, imported late, see below
import json
import os
import pathlib
import shutil
import tempfile

# Modules imported late may be in a folder that the other user cannot enter.
import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import pytest

from bigjax import main
from bigjax.data import store
from bigjax.data.tokenizers.bytes import Bytes
from tests import helpers
from tests.conftest import write_text
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder():
    """A temporary folder that other users can enter, unlike those of pytest."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bigjax-test-"))
    folder.chmod(0o755)
    (folder / "mine").mkdir()
    (folder / "mine").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def flags(folder):
    write_text(folder / "corpus.txt", 60)
    return [
        f"--config={helpers.TINY}",
        f"--config.data.sources.text.path={folder}/corpus.txt",
        f"--config.data.cache_dir={folder}/cache",
        "--config.train.steps=2",
        "--config.model.n_layers=1",
    ]


@pytest.fixture(scope="module")
def run(flags, folder):
    assert main.main(["train", *flags, f"--workdir={folder}/run"]) == 0
    return folder / "run"


@pytest.fixture
def home(folder, monkeypatch):
    """A home folder that does not exist and cannot be created."""
    monkeypatch.setenv("HOME", str(folder / "nobody"))


@pytest.mark.slow
def test_commands_that_only_read_work(run, folder, home, capsys):
    with helpers.read_only(run, folder / "cache"):
        code, out, err = bigjax(capsys, "eval", f"--workdir={run}", "--json")
        assert code == 0 and not err, err
        assert json.loads(out.splitlines()[-1])["eval/valid/loss"] > 0
        code, _, err = bigjax(capsys, "generate", f"--workdir={run}", "--max_tokens=4")
        assert code == 0, err
        assert bigjax(capsys, "checkpoint", f"--workdir={run}")[0] == 0
        picture = folder / "mine" / "report.png"
        code, out, err = bigjax(capsys, "report", f"--workdir={run}", f"--out={picture}")
        assert code == 0 and picture.exists(), err
        code, _, err = bigjax(capsys, "export", f"--workdir={run}", f"--to={folder}/mine/exported")
        assert code in (0, 2) and (folder / "mine" / "exported").exists() == (code == 0), err


@pytest.mark.slow
def test_commands_that_write_are_refused_in_one_sentence(run, flags, folder, home, capsys):
    before = sorted(run.rglob("*"))
    data = flags[:3]  # the keys that `bigjax tokenizer` uses
    (folder / "bare").mkdir(exist_ok=True)
    with helpers.read_only(run, folder / "cache", folder / "bare"):
        for arguments, texts in (
            (["train", *flags, f"--workdir={run}"], ["work folder", str(run), "Use another"]),
            (["train", *flags, f"--workdir={folder}/bare/new"], ["work folder", "bare/new"]),
            (["report", f"--workdir={run}"], ["report.png", "--out="]),
            (["tokenizer", *data, f"--out={run}/tokenizer"], ["--out=", "another folder"]),
            (["tokenizer", *data, f"--out={folder}/bare/t"], ["--out=", "another folder"]),
            (["import", f"--from={run}", f"--workdir={folder}/bare/i"], ["config.json"]),
            (
                ["train", *flags, f"--workdir={folder}/mine/r", f"--config.data.cache_dir={run}"],
                ["data.cache_dir", "a folder you can write to"],
            ),
            (
                ["train", *flags, f"--workdir={folder}/mine/r", "--config.data.cache_dir=~/c"],
                ["data.cache_dir", "a folder you can write to"],
            ),
        ):
            code, out, err = bigjax(capsys, *arguments)
            assert code == 2, (arguments, out, err)
            assert all(t in err for t in texts) and err.count("\n") == 1, (arguments, err)
    assert sorted(run.rglob("*")) == before and not list((folder / "bare").iterdir())
    assert not (folder / "mine" / "r").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_entered(run, folder, capsys):
    with helpers.read_only(run):
        pass
    mode = run.stat().st_mode
    run.chmod(0)
    try:
        with helpers.another_user():
            for command in (
                ["eval"],
                ["report"],
                ["checkpoint"],
                ["config"],
                ["train", f"--config={helpers.TINY}"],
            ):
                code, _, err = bigjax(capsys, *command, f"--workdir={run}")
                assert code == 2 and str(run) in err and err.count("\n") == 1, (command, err)
    finally:
        run.chmod(mode)


def test_a_token_store_is_read_from_another_users_folder(folder):
    build = lambda: store.build_store(
        lambda counts: iter(["one text", "two"]), "c", Bytes(), 0.0, 0.0, str(folder / "stores")
    )
    built = build()
    (built_folder,) = (folder / "stores" / "stores").iterdir()
    (built_folder / "lock").unlink(missing_ok=True)
    with helpers.read_only(folder / "stores"):
        assert build().stats == built.stats
    (built_folder / "store.json").unlink()
    with helpers.read_only(folder / "stores"), pytest.raises(Exception, match="data.cache_dir"):
        build()
    assert os.path.isdir(built_folder)
