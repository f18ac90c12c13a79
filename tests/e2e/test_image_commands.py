"""Commands on a model of images: evaluation with its files, and predictions for files."""

import csv
import io
import json
import re

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from bigjax import main, tasks
from bigjax.parallel import hosts
from tests import helpers
from tests.helpers import bigjax

pytestmark = pytest.mark.usefixtures("one_device")
CONFIG = """
from bigjax import config

def get_config(variant=""):
    c = config.new_config()
    c.model = dict(name="vit", image_size=8, channels=1, patch=4, d_model=32, n_layers=1, n_heads=2)
    c.task = dict(name="image_classify")
    c.data = dict(name="images", train="FOLDER", size=8, channels=1, max_bad=0.1, threads=2)
    c.data.augment = dict(crop="center", flip=False)
    c.optim.learning_rate, c.train.steps, c.train.batch_size = 3e-3, 40, 16
    c.evals = dict(
        test=dict(kind="metrics", split="test", every=40),
        few=dict(kind="fewshot", shots=(1, 10), seeds=2, every=40),
    )
    return c
"""
CLASSES = ("nought", "one", "two")


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits 0, 1 and 2: 40 to train on, 12 to test and one file that is no image."""
    root, digits = tmp_path_factory.mktemp("data") / "photos", load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for label, name in enumerate(CLASSES):
        own = images[digits.target == label]
        for split, part in (("train", own[:40]), ("test", own[40:52])):
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(part):
                (root / split / name / f"{i:02}.png").write_bytes(png(image))
    (root / "test" / "one" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def run(photos, cache_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "c.py").write_text(CONFIG.replace("FOLDER", str(photos)))
    flags = [f"--config={folder / 'c.py'}", f"--config.data.cache_dir={cache_dir}"]
    assert main.main(["train", *flags, f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def last_numbers(run) -> dict:
    return {k: v for line in helpers.read_metrics(run) for k, v in line.items()}


def test_training_writes_the_report_of_the_test_images(run, photos):
    numbers = last_numbers(run)
    folder = run / "evals" / "test"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [*rows[0]] == ["file", "label", "prediction", "probability", "probabilities"]
    assert len(rows) == 37 and [*rows[0]["probabilities"]] == [*CLASSES]
    (broken,) = [row for row in rows if row["prediction"] is None]
    assert broken["file"] == str(photos / "test" / "one" / "broken.png") and broken["note"]
    right = [r["label"] == r["prediction"] for r in rows if r is not broken]
    assert numbers["eval/test/accuracy"] == pytest.approx(sum(right) / 36) and sum(right) > 30
    assert 0 < numbers["eval/test/ece"] < 0.5 and "eval/test/top5" not in numbers
    assert "1 of 37 images could not be read" in (folder / "report.txt").read_text()
    assert json.loads((folder / "report.json").read_text())["by_label"]["one"]["support"] == 12
    for name in ("confusion", "reliability"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_few_images_are_enough_for_a_trained_model(run):
    first, *_, last = [m for m in helpers.read_metrics(run) if "eval/few/shot_10" in m]
    assert first["step"] == 0 and last["step"] == 40
    assert min(last["eval/few/shot_1"], last["eval/few/shot_10"]) > 0.7
    assert 0 <= last["eval/few/shot_10_std"] < 0.2


def test_eval_gives_the_same_numbers(run, capsys):
    code, out, err = bigjax(capsys, "eval", f"--workdir={run}", "--json")
    assert code == 0 and "precision    recall  f1-score" in out, err
    assert re.search(r"few, step 40:\nshots  accuracy     std +l2\n +1 +[.\d]+", out), out
    expected = last_numbers(run)
    for name, value in json.loads(out.splitlines()[-1]).items():
        assert expected[name] == pytest.approx(value, rel=1e-5), name


def test_predictions_of_a_pattern_agree_with_the_evaluation(run, photos, tmp_path, capsys):
    rows = (run / "evals" / "test" / "predictions.jsonl").read_text().splitlines()
    evaluated = {row["file"]: row for row in map(json.loads, rows)}
    for ending in ("csv", "jsonl"):
        file = tmp_path / f"p.{ending}"
        given = f"--input={photos}/test/*/*.png"
        code, out, err = bigjax(capsys, "predict", f"--workdir={run}", given, f"--output={file}")
        assert code == 0 and "note: 1 of 37 rows has no prediction" in out, err
        text = file.read_text()
        made = [*csv.DictReader(io.StringIO(text))]
        if ending == "jsonl":
            made = [json.loads(line) for line in text.splitlines()]
            assert made[0]["probabilities"] == pytest.approx(
                evaluated[made[0]["file"]]["probabilities"], rel=1e-4
            )
        assert {row["file"] for row in made} == {*evaluated} and len(made) == 37
        for row in made:
            want = evaluated[row["file"]]
            assert (row["prediction"] or None) == want["prediction"]
            assert (row.get("note") or None) == want.get("note")
            if want["prediction"]:
                assert float(row["probability"]) == pytest.approx(want["probability"], rel=1e-4)
        assert made[24]["note"].startswith("not an image that Pillow can read")


def test_the_hosts_join_before_a_task_starts_jax(run, photos, capsys, monkeypatch):
    """jax cannot join others after its first computation."""
    calls = []
    for module, name in ((hosts, "start"), (tasks, "build")):
        original = getattr(module, name)
        recording = lambda *a, n=name, f=original: (calls.append(n), f(*a))[1]
        monkeypatch.setattr(module, name, recording)
    given = f"--input={photos}/test/one/00.png"
    code, _, err = bigjax(capsys, "predict", f"--workdir={run}", given)
    assert code == 0 and calls[0] == "start" and "build" in calls, err


@pytest.mark.parametrize(
    "given, names",
    [
        ("test/one/00.png", ["test/one/00.png"]),
        ("test/tw*", [f"test/two/{i:02}.png" for i in range(12)]),  # a folder
        ("t*/**/0[12].png", [f"{s}/{c}/{i}.png" for s in ("test", "train") for c in CLASSES
                             for i in ("01", "02")]),
    ],
)  # fmt: skip
def test_what_input_may_be(run, photos, capsys, given, names):
    code, out, err = bigjax(capsys, "predict", f"--workdir={run}", f"--input={photos / given}")
    header, *rows, last = out.splitlines()
    assert code == 0 and header.split() == ["file", "prediction", "probability"], err
    assert last.startswith(f"{len(names)} row{'s' * (len(names) > 1)}, step 40 of")
    assert len(rows) == len(names) and all(r.split()[1] in CLASSES for r in rows)
    for row, name in zip(rows, names):  # long paths lose their middle
        assert row.split()[0].endswith(name[-20:])


def test_a_folder_and_a_table_of_images(run, photos, tmp_path, capsys):
    (tmp_path / "some").mkdir()
    for name in ("a.png", "deep/b.PNG", "c.txt"):
        path = tmp_path / "some" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((photos / "train" / "two" / "00.png").read_bytes())
    code, out, err = bigjax(capsys, "predict", f"--workdir={run}", f"--input={tmp_path / 'some'}")
    assert code == 0 and "1 files in" in out and "c.txt: left out" in out, err
    assert "2 rows" in out and "deep/b.PNG" in out
    only = tmp_path / "some" / "c.txt"  # named alone, it is an image whatever its name
    code, out, err = bigjax(capsys, "predict", f"--workdir={run}", f"--input={only}")
    assert code == 0 and "\n1 row, step" in out, err
    (tmp_path / "t.csv").write_text("id,picture\n7,some/a.png\n8,some/c.txt\n")
    output = tmp_path / "o.csv"
    flags = [f"--input={tmp_path / 't.csv'}", "--config.data.columns.image=picture"]
    code, _, err = bigjax(capsys, "predict", f"--workdir={run}", *flags, f"--output={output}")
    assert code == 0, err
    header, *rows = csv.reader(io.StringIO(output.read_text()))
    assert header == ["id", "picture", "prediction", "probability"]
    assert [row[:2] for row in rows] == [["7", "some/a.png"], ["8", "some/c.txt"]]


@pytest.mark.parametrize(
    "given, words",
    [
        ("no/*.png", "no/\\*.png': no file .looked from .*a pattern such as"),
        ("test/one/broken.png", "None of the 1 image.s. can be read. .*broken.png: not an image"),
        ("none.csv", "none.csv"),
        ("hollow", "names 1 file.s. and folder.s. without images"),
    ],
)
def test_bad_input(run, photos, capsys, given, words):
    (photos.parent / "hollow").mkdir(exist_ok=True)
    path = photos.parent / given if given == "hollow" else photos / given
    code, _, err = bigjax(capsys, "predict", f"--workdir={run}", f"--input={path}")
    assert code == 2 and err.count("\n") == 1
    assert re.search(words, err), err
