"""The report of the oracle experiment against numbers computed by hand."""

import json
import math

import pytest

from bigjax import cli
from bigjax.errors import UserError
from bigjax.projects.seqgan import report


def write_run(
    folder,
    points,
    *,
    seed=0,
    steps=4,
    oracle_seed=0,
    tempered=(),
    name="oracle",
    split="test",
    more=None,
    **task,
):
    """A work folder with these (NLL_oracle, NLL_test) at rounds 0, 1, ...; tempered: at T=0.5."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "seed": seed,
                "resume_from": "",
                "init_from": str(seed),
                "train": {"steps": steps},
                "task": {
                    "reward": "probability",
                    "mle_rounds": 2,
                    "discriminator_rounds": 1,
                    "scheduled_sampling": 0.0,
                    "likelihood": 0.0,
                    **task,
                },
                "data": {
                    **dict(params="", seed=oracle_seed, d_model=32, sequences=100, seq_len=20),
                },
                "model": {"vocab_size": 5000},
                "evals": {name: {"split": split}},
                **(more or {}),
            }
        )
    )
    lines = [
        {"step": i, f"eval/{name}/nll_oracle": x, f"eval/{name}/nll_test": y}
        for i, (x, y) in enumerate(points)
    ]
    for line, (x, y) in zip(lines, tempered):
        line |= {f"eval/{name}/nll_oracle_0.5": x, f"eval/{name}/nll_test_0.5": y}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def cells(text, label):
    """The columns of a row after its label: kind, seeds, round, ..."""
    (row,) = [line for line in text.splitlines() if line.split("  ")[0] == label]
    return [cell.strip() for cell in row.split("  ")[1:] if cell.strip()]


def test_numbers_are_printed_when_the_picture_cannot_be_written(tmp_path, capsys):
    run = write_run(tmp_path / "run", [(10.0, 5.0), (8.0, 6.0)])
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match="x.png cannot be written"):
        report.draw([run], str(tmp_path / "x.png"))
    out = capsys.readouterr().out
    assert report.HOW_TO_READ in out and "Wrote" not in out


def test_a_path_is_interpolated():
    path = [(10.0, 5.0), (8.0, 6.0), (9.0, 4.0)]
    assert report.on_path(path, 9.5) == 5.25
    assert report.on_path(path, 8.5) == 5.0  # crossed twice: 5.75 and 5.0
    assert report.on_path(path, 9.0) == 4.0
    assert math.isnan(report.on_path(path, 7.9)) and math.isnan(report.on_path(path, 10.1))
    assert report.on_path([(3.0, 2.0)], 3.0) == 2.0


def test_the_hull_is_below_all_points_and_ends_at_the_lowest():
    points = [(0.0, 9.0), (0.0, 8.0), (1.0, 7.0), (2.0, 2.0), (3.0, 1.5), (4.0, 1.0), (5.0, 3.0)]
    assert report.hull(points[::-1]) == [(0.0, 8.0), (2.0, 2.0), (4.0, 1.0)]
    assert report.hull([(1.0, 1.0)]) == [(1.0, 1.0)]


def test_against_control_and_temperature(tmp_path):
    """For seed 0 the envelope is 12, 10, 8 at 6, 8, 10; at 7 it is 11 and the control 11.5."""
    runs = [
        write_run(tmp_path / "gan-0", [(10, 8), (7, 10.8)]),
        write_run(tmp_path / "gan-1", [(10, 8), (7, 10.2)], seed=1),
        write_run(tmp_path / "self_0", [(10, 8), (8, 10), (6, 13)], reward="constant"),
        write_run(tmp_path / "self_1", [(10, 8), (8, 10), (6, 11)], reward="constant", seed=1),
        write_run(tmp_path / "mle", [(11, 9), (10, 8)], tempered=[(8, 10), (6, 12)], steps=3),
    ]
    text = report.draw(runs, None)
    assert cells(text, "gan") == [
        "adversarial",
        "0 1",
        "1",
        "7.000 ± 0.000",
        "10.500 ± 0.424",
        "-0.500 ± 0.283",
        "-",
        "-0.200 (1 of 2)",
    ]
    assert cells(text, "self")[0] == "control" and cells(text, "self")[-3] == "-"
    assert cells(text, "mle") == ["MLE", "0", "1", "10.000", "8.000", "+0.000", "-", "+0.000"]
    assert "Negative is better" in text and (tmp_path / "gan-0/seqgan-report.png").exists()


def test_an_nll_oracle_that_no_baseline_reaches(tmp_path):
    mle = write_run(tmp_path / "mle", [(10, 8)], steps=3, tempered=[(8, 10)])
    control = write_run(tmp_path / "control", [(10, 8), (8, 10)], reward="constant")
    left = write_run(tmp_path / "left", [(7, 10)], kl=1)
    right = write_run(tmp_path / "right", [(12, 8.5)], kl=2)
    text = report.draw([mle, control, left, right], None)
    assert cells(text, "control")[-3:] == ["-", "-", "+0.000"]  # not compared with itself
    assert cells(text, "left")[-3:] == ["-", "-", "-"]
    assert cells(text, "right")[-3:] == ["-", "-", "+0.500"]  # (10, 8) is better in both


def test_the_best_of_several_controls_counts(tmp_path):
    runs = [
        write_run(tmp_path / "gan", [(7, 10)]),
        write_run(tmp_path / "a", [(10, 8), (6, 12)], reward="constant"),
        write_run(tmp_path / "b", [(10, 7), (7, 10.5)], reward="constant", kl=1),
    ]
    text = report.draw(runs, None)
    assert cells(text, "gan")[-3] == "-0.500"  # from 10.5, not 11
    assert cells(text, "b")[-3] == "-0.500" and cells(text, "a")[-3] == "-"


def test_against_the_same_reward_without_a_discriminator(tmp_path):
    runs = [
        write_run(tmp_path / "gan", [(7, 10)], likelihood=0.5),
        write_run(tmp_path / "sharp", [(10, 8), (6, 10)], reward="constant", likelihood=0.5),
    ]
    text = report.draw(runs, None)
    assert cells(text, "gan")[-3:] == ["-", "+0.500", "-"]
    assert cells(text, "sharp")[0] == "sharpened"


@pytest.mark.parametrize(
    "out, message",
    [("curves.jpeg", "must end in .png, .pdf or .svg"), ("file/curves.png", "cannot be written")],
)
def test_pictures_that_cannot_be_written(tmp_path, out, message):
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "gan", [(7, 10)])
    with pytest.raises(UserError, match=message):
        report.draw([run], str(tmp_path / out))
    for content in (b"{}", b'{"evals": "\xff"}'):
        (tmp_path / "gan/config.json").write_bytes(content)
        with pytest.raises(UserError, match="is not the config of a run"):
            report.draw([run], None)


def test_temperature_needs_temperatures_of_maximum_likelihood(tmp_path):
    gan = write_run(tmp_path / "gan", [(8, 10)], tempered=[(7, 9)])
    alone = write_run(tmp_path / "mle", [(7, 9), (9, 9)], steps=3)
    sampled = write_run(
        tmp_path / "sampled", [(7, 9)], tempered=[(9, 9)], steps=3, scheduled_sampling=0.5
    )
    text = report.draw([gan, alone, sampled], None)
    assert cells(text, "gan")[-1] == "-"
    assert cells(text, "sampled")[0] == "scheduled sampling"


@pytest.mark.parametrize(
    "steps, task, kind",
    [
        (3, {}, "MLE"),
        (4, {}, "adversarial"),
        (2, {"reward": "constant"}, "MLE"),
        (3, {"reward": "constant"}, "control"),
    ],
)
def test_kinds(tmp_path, steps, task, kind):
    assert report.read_run(write_run(tmp_path / "run", [(1, 1)], steps=steps, **task)).kind == kind


def test_groups_and_their_labels(tmp_path):
    for name, seed, more in (
        ("a_3", 3, {}),
        ("as4", 4, {}),
        ("b_1", 0, {"kl": 1}),
        ("x/c-0", 0, {"kl": 2}),
        ("y/c-0", 0, {"kl": 3}),
        ("x/c_0", 0, {"kl": 4}),
    ):
        write_run(tmp_path / name, [(1, 1)], seed=seed, **more)

    def labels(*names):
        return list(report._groups([report.read_run(str(tmp_path / name)) for name in names]))

    assert labels("a_3", "as4", "b_1") == ["a", "b_1"]
    assert labels("x/c-0", "y/c-0") == [str(tmp_path / "x/c"), str(tmp_path / "y/c")]
    assert labels("x/c-0", "x/c_0") == [str(tmp_path / "x/c-0"), str(tmp_path / "x/c_0")]


def test_the_test_split_is_preferred(tmp_path):
    folder = tmp_path / "run"
    run = write_run(
        folder,
        [(9, 8)],
        name="a",
        more={"evals": {"a": {"split": "test"}, "b": {"split": "valid"}}},
    )
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"step": 1, "eval/b/nll_oracle": 5.0, "eval/b/nll_test": 5.0}\n')
    assert report.read_run(run).points == {0: (9, 8)}


def test_runs_that_cannot_be_compared(tmp_path):
    a = write_run(tmp_path / "a", [(1, 1)])
    b = write_run(tmp_path / "b", [(1, 1)], oracle_seed=7)
    c = write_run(tmp_path / "c", [(1, 1)], split="valid")
    with pytest.raises(UserError, match="a' and .*b' .*data.seed is 0 and 7"):
        report.draw([a, b], None)
    with pytest.raises(UserError, match="a' and .*c' .*split is 'test' and 'valid'"):
        report.draw([a, c], None)


def test_runs_of_other_experiments_are_refused(tmp_path):
    run = write_run(tmp_path / "plain", [])
    (tmp_path / "plain/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(UserError, match="plain' has no metrics eval/NAME/nll_oracle"):
        report.draw([run], None)
    (tmp_path / "plain/config.json").unlink()
    with pytest.raises(UserError, match="config.json is not the config"):
        report.draw([run], None)
    with pytest.raises(UserError, match="--workdir"):
        report.draw([], None)


def test_the_command(tmp_path, capsys):
    run, out = write_run(tmp_path / "gan", [(8, 10)]), tmp_path / "new" / "curves.png"
    assert cli.run(["seqgan-report", f"--workdir={run}", f"--out={out}"]) == 0
    assert cells(capsys.readouterr().out, "gan")[3:5] == ["8.000", "10.000"]
    assert out.exists()


def test_the_picture_has_a_line_per_seed_and_their_mean(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    runs = [
        write_run(tmp_path / "gan-0", [(9, 8), (7, 10)]),
        write_run(tmp_path / "gan-1", [(9, 6)], seed=1),
        write_run(tmp_path / "mle", [(9, 8)], tempered=[(7, 9)], steps=3),
    ]
    shown = []
    monkeypatch.setattr(plt, "close", lambda figure: shown.extend(figure.axes))
    report.draw(runs, None)
    monkeypatch.undo()
    plt.close("all")
    first, second, plane = shown
    means = [line for line in second.lines if line.get_label() == "gan"]
    assert [list(line.get_ydata()) for line in means] == [[7.0]]  # at the only round of both
    assert len(first.lines) == 5
    assert len(plane.lines) == 7 and list(plane.lines[-1].get_ydata()) == [9, 8]
