"""Messages for files and folders that cannot be read or written."""

import errno
import json
import os
import pwd

from etils import epath
import pytest

from bigjax import config, errors, main, report
from bigjax.cli import eval as eval_command
from bigjax.errors import UserError
from bigjax.evals import Context
from bigjax.interop import files, origin
from bigjax.projects.seqgan import report as oracle
from bigjax.train import checkpoint, init_from, workdir
from tests import helpers


@pytest.mark.parametrize(
    "error, known",
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), True),
        (PermissionError(errno.EPERM, "Operation not permitted", "/x/y"), True),
        (OSError(errno.EROFS, "Read-only file system", "/x/a", None, "/x/y"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EIO, "Input/output error", "/x/y"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_a_command_without_permission_prints_one_sentence(monkeypatch, capsys, error, known):
    def command(arguments):
        raise error

    monkeypatch.setattr(eval_command, "run", command)
    if not known:
        # Otherwise it would be reported as raised by a user's own code, this file.
        monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
        with pytest.raises(type(error)):
            main.main(["eval"])
        return
    assert main.main(["eval"]) == 2
    err = capsys.readouterr().err
    assert error.strerror in err and "permission" in err and err.count("\n") == 1
    assert ("/x/y" in err) == bool(error.filename)


def test_evaluation_reports_files_that_it_could_not_write(tmp_path):
    def context(unwritten):
        return Context(*[None] * 4, print, epath.Path(tmp_path), {}, unwritten=unwritten)

    def fail(error, cause=None):
        def write(folder):
            raise error from cause

        return write

    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = UserError("The predictions file cannot be written: name another")
    for unwritten in ([], None):
        for error, cause in ((full, None), (wrapped, full)):
            if unwritten is None:
                with pytest.raises(type(error)):
                    context(None).write("valid", fail(error, cause))
                continue
            assert context(unwritten).write("valid", fail(error, cause)) == ""
        with pytest.raises(UserError):  # of the data, not of the disk
            context(unwritten).write("valid", fail(UserError("a tab in .tsv")))
        if unwritten:
            where = tmp_path / "evals" / "valid"
            assert unwritten == [f"Not written: {where} (No space left on device)"] * 2
    assert context([]).write("valid", lambda folder: (folder / "a").touch()).endswith("evals/valid")
    assert (tmp_path / "evals" / "valid" / "a").exists()


def test_a_picture_that_cannot_be_written_names_the_flag(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    (tmp_path / "report.png").mkdir()
    with pytest.raises(UserError, match=r"report.png cannot be written: .*--out=FILE.png"):
        report.draw([str(tmp_path)], None)
    assert "loss 2" in report.draw([str(tmp_path)], str(tmp_path / "other.png"))


def test_a_report_of_another_users_run_prints_its_numbers(capsys):
    with helpers.open_folder() as folder:
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 2.0}) + "\n")
        with helpers.read_only(folder):
            for out in (None, str(folder / "new" / "x.png")):
                with pytest.raises(UserError, match=r"png cannot be written: Perm.* belongs to "):
                    report.draw([str(folder)], out)
                assert capsys.readouterr().out == f"{folder}, step 7: loss 2\n"


def test_files_in_another_users_folder_are_not_reported_as_missing():
    """epath.Path.exists returns False without permission to look."""
    with helpers.open_folder() as folder:
        run = folder / "run"
        (run / "checkpoints" / "5").mkdir(parents=True)
        (run / "config.json").write_text(config.to_json(config.new_config()))
        (run / "metrics.jsonl").write_text('{"step": 1}\n')
        looks = (
            lambda: workdir.existing(str(run)),
            lambda: workdir.read_config(str(run)),
            lambda: workdir.saved_steps(str(run)),
            lambda: workdir.check_same_run(str(run), config.new_config(), print),
            lambda: report.read(str(run)),
            lambda: oracle.read_run(str(run)),
            lambda: init_from.open_source(str(run), str(folder)),
            lambda: origin.load(run),
        )
        for hidden, closed in ((run, looks), (run / "checkpoints", looks[2:3])):
            mode = hidden.stat().st_mode
            hidden.chmod(0)
            owner = pwd.getpwuid(os.getuid()).pw_name
            with helpers.another_user():
                for look in closed:
                    with pytest.raises((UserError, PermissionError)) as e:
                        look()
                    messages = errors.file_failure(e.value) or e.value  # as main says it
                    assert f"; {hidden} belongs to {owner}. Check" in str(messages), messages
            hidden.chmod(mode)
        with pytest.raises(UserError, match="it has no config.json"):
            workdir.existing(str(folder / "none"))


@pytest.mark.parametrize(
    "error, words",
    [
        (PermissionError(13, "Permission denied"), "Give another folder, or ask its owner"),
        (OSError(28, "No space left on device"), "Free some space there, or give another folder"),
    ],
)
def test_an_export_that_cannot_be_written_names_a_remedy(tmp_path, error, words):
    with pytest.raises(UserError, match=f"exported cannot be written: {error.strerror}.*{words}"):
        with files.new_folder(tmp_path / "exported"):
            raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_in_the_words_of_the_system():
    """TensorStore's message has a thousand characters and does not start with the reason."""
    text = f"RESOURCE_EXHAUSTED: Error writing {'x' * 300}: No space left on device [OS error 28]"
    assert checkpoint._short(ValueError(text)) == "No space left on device"
    assert checkpoint._short(ValueError("odd")) == "ValueError: odd"
