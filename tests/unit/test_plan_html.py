"""The page that `bigjax plan --html` writes."""

import html.parser
import json
import re
from unittest import mock

import pytest

from bigjax.errors import UserError
from bigjax.plan import chips, command
from bigjax.plan import html as html_lib
from tests.unit.test_plan_schedule import ENTRIES, entry, planned
from tests.unit.test_plan_search import made

TOPOLOGY = "--topology=v5e:4x4"


class Reader(html.parser.HTMLParser):
    """The elements of a page, (tag, attributes), and its text; fails where tags do not close."""

    EMPTY = {"meta", "path"}

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def written(monkeypatch, capsys, tmp_path):
    """written(plan, arguments...) -> (the page, what is printed)."""

    def write(plan, *arguments):
        path = tmp_path / "new folder" / "plan.html"
        out = planned(monkeypatch, capsys, plan, f"--html={path}", *arguments)
        assert f"Wrote {path}\n" in out
        return path.read_text(encoding="utf-8"), out

    return write


def test_the_page_needs_no_other_file(written):
    text, out = written(made(1.0, schedule=ENTRIES), TOPOLOGY)
    page = Reader(text)
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script|<link", text)
    assert {"svg", "rect", "pre", "title"} <= {tag for tag, _ in page.elements}
    for line in out.splitlines():  # everything that is printed, and the trust
        assert line.startswith(("Wrote ", "Planning for ")) or line in page.text, line
    assert "layer<7>&" in page.text and "layer<7>" not in text  # escaped


def widths(text, colour):
    """Of the bars, which are at least 18 high, in a colour."""
    return [
        float(a["width"])
        for tag, a in Reader(text).elements
        if tag == "rect" and float(a["height"]) >= 18 and a["fill"] == colour
    ]


def test_bars_are_as_long_as_what_they_show(written):
    GIB = chips.GIB
    plan = made(
        1.0,
        peak=8.0,
        limit_bytes=16.0 * GIB,
        parameter_bytes=1.0 * GIB,
        optimizer_bytes=3.0 * GIB,
        host_bytes=1.0 * GIB,
        schedule=ENTRIES,
    )
    text, _ = written(plan, TOPOLOGY)
    width, colours = html_lib.WIDTH, html_lib.COLOURS
    near = lambda *values: pytest.approx(values, abs=0.06)  # they are written with one decimal
    # Of 16 GiB: 1 of parameters, 2 of the optimizer on the device, 5 of others. By kind half of the
    # time is in products, a quarter in kernels; then there is one bar for each of the largest.
    (_, product, longest), (_, kernel, half) = (
        widths(text, colours[kind]) for kind in ("matrix product", "kernel")
    )
    assert (product, kernel, half) == near(width / 2, width / 4, longest / 2)
    assert longest == width - 520  # which the text before and behind it needs
    assert tuple(widths(text, colours["parameters"])[:1]) == near(width / 16)
    assert "largest: 88% of the time" in text  # 1 / 2 + 1 / 4 + 8 / 64
    assert "parameters 1.00 GiB" in text and "optimizer 2.00 GiB" in text
    assert "other 5.00 GiB" in text and "limit 16.00 GiB" in text


def test_a_long_name_keeps_its_end(written):
    name = "stack/" + "x" * 60 + "/query"
    text, _ = written(made(1.0, schedule=(entry(name, "copy", 1.0),)), TOPOLOGY)
    label = "..." + f"{name}, forward"[-html_lib.LABEL + 3 :]
    assert f">{label}</text>" in text and len(label) == html_lib.LABEL


def test_a_plan_that_does_not_fit_and_one_without_seconds(written):
    text, _ = written(made(0, 18.0), TOPOLOGY)
    assert "DOES NOT FIT, by 2.25 GiB" in text and text.count("<svg") == 1
    text, _ = written(made(0, 3.0, flops=1e12, step_seconds=None), "--topology=h100:8")
    assert text.count("<svg") == 1 and "no time is predicted for h100" in text


def test_each_phase_has_a_section(written):
    plans = [made(1.0, schedule=ENTRIES, phase=name) for name in ("generator", "discriminator")]
    text, _ = written(plans, TOPOLOGY)
    assert re.findall(r"<h2>.*, phase (\w+)</h2>", text) == ["generator", "discriminator"]
    assert text.count("<svg") == 6


def test_the_numbers_stay_the_last_line(written):
    _, out = written(made(1.0, schedule=ENTRIES), TOPOLOGY, "--json")
    assert json.loads(out.splitlines()[-1])["fits"]


def test_a_page_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    plan = made(1.0, schedule=ENTRIES)
    with pytest.raises(UserError, match="plan.pdf must end in .html"):
        planned(monkeypatch, capsys, plan, TOPOLOGY, "--html=plan.pdf")
    assert not capsys.readouterr().out  # refused before anything is compiled
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="plan.html cannot be written.*--html=FILE"):
        planned(monkeypatch, capsys, plan, TOPOLOGY, f"--html={tmp_path}/file/plan.html", "--json")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="folder.html is a folder"):
        planned(monkeypatch, capsys, plan, TOPOLOGY, f"--html={tmp_path}/folder.html")
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="--html"):
        planned(monkeypatch, capsys, plan, TOPOLOGY, "--html=")
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(command.paths, "write_atomically", full)
    with pytest.raises(UserError, match="plan.html cannot be written.*No space left"):
        planned(monkeypatch, capsys, plan, TOPOLOGY, f"--html={tmp_path}/plan.html", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fits"]  # nothing is lost
