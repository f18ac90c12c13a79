"""Searching layouts, correcting seconds by measurements, and the page of a plan."""

import dataclasses
import gzip
import json
import re

import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.errors import UserError
from bigjax.models import gpt
from bigjax.plan import calibrate, chips, command, predict, search
from bigjax.plan import compile as compile_lib
from tests import helpers


def config(size="1.3b", batch_size=64):
    c = helpers.load_config(f"configs/gpt/gpt3.py:{size}")
    with c.unlocked():
        c.train.batch_size = batch_size
    return c


def made(seconds=1.0, peak=4.0, **more):
    """A plan; communication takes half as long as work."""
    collective = predict.Collective("all-gather", "fsdp", 1e9, seconds / 2)
    step = (seconds, 1.5 * seconds) if seconds else None
    return compile_lib.Plan(
        **{
            **dict(
                phase="",
                mesh=dict(data=1, fsdp=16, sequence=1, tensor=1),
                model_flops=1e15,
                limit_bytes=15.75 * chips.GIB,
                parameter_bytes=1e9,
                optimizer_bytes=2e9,
                frozen_bytes=0.0,
                unit="tokens",
                units=64 * 2048,
                peak_bytes=peak * chips.GIB,
                compile_seconds=3.0,
                flops=1e12 if seconds else None,
                kernel_flops=0.0,
                work_seconds=seconds,
                kernel_seconds=0.0,
                step_seconds=step,
                collectives=(collective,) if seconds else (),
            ),
            **more,
        }
    )


@pytest.fixture
def compiled(monkeypatch):
    """The configs that were compiled, by a fake compiler with slow tensor parallelism and remat."""
    done = []

    def plans(c, topology, slices):
        done.append(c)
        return [
            made(
                1
                + c.mesh.tensor
                + 0.1 * c.train.accumulate
                + {"none": 0, "dots": 0.2, "attention": 0.3, "full": 0.4}[c.model.remat]
            )
        ]

    monkeypatch.setattr(compile_lib, "plans", plans)
    return done


def searched(c=None, minutes=60, log=print, seconds_of=calibrate.NONE.expected):
    return search.search(c or config(), "v5e:4x4", 1, minutes, log, seconds_of)


def test_candidates_are_layouts_that_may_fit():
    kept, ruled_out = search._candidates(config(), "v5e:4x4", 1)
    assert kept and ruled_out
    for c in kept:
        sizes = c.mesh
        assert sizes["data"] * sizes["fsdp"] * sizes["sequence"] * sizes["tensor"] == 16
        assert 64 % (sizes["data"] * sizes["fsdp"] * c.accumulate) == 0
        assert 2048 % (128 * sizes["sequence"]) == 0
        flops = 6 * 1.3e9 * 64 * 2048
        assert 1 < c.estimate / (flops / (16 * 197e12)) < 10
        rows = 64 // (sizes["data"] * sizes["fsdp"] * c.accumulate)
        assert sizes["sequence"] == 1 or rows % sizes["sequence"]
    whole_fsdp = dict(data=1, fsdp=16, sequence=1, tensor=1)
    remats = {c.remat for c in kept if c.mesh == whole_fsdp and c.accumulate == 1}
    assert remats == {"dots", "attention", "full"}  # 'none' keeps 19 GiB at least
    # 1.3 billion parameters with their moments and gradients, 16 bytes each, are 19.6 GiB.
    assert not any(c.mesh["fsdp"] * c.mesh["tensor"] == 1 for c in kept)


def test_sequences_are_sharded_only_if_there_are_too_few_examples():
    kept, _ = search._candidates(config(batch_size=2), "v5e:4x4", 1)
    assert any(c.mesh["sequence"] == 8 for c in kept)


def test_frozen_parts_take_memory_once_and_sharded():
    c = config("125m")
    task = tasks.build(c)
    part = tasks.Frozen(lambda rng: task.init(rng)["params"], task.axes["params"])

    def bytes_at_rest(task, **sizes):
        chip = chips.CHIPS["v5e"]
        arithmetic = search._Arithmetic(c, task, chip, (4, 4), 16, 1)
        return arithmetic.at_rest({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, **sizes})

    for sizes in ({"data": 16}, {"data": 4, "fsdp": 4}):
        own = bytes_at_rest(task, **sizes)
        both = bytes_at_rest(dataclasses.replace(task, frozen={"teacher": part}), **sizes)
        # A parameter has its gradient and two moments in float32, a frozen one only itself.
        assert (both - own) == pytest.approx(own / 4, rel=1e-3)
    c.optim.offload = True  # both moments are in host memory
    assert bytes_at_rest(task, data=4, fsdp=4) == pytest.approx(own / 2, rel=1e-3)
    c.optim.freeze = "stack|embed|position"  # without gradients either
    assert bytes_at_rest(task, data=4, fsdp=4) == pytest.approx(own / 4, rel=1e-2)


@pytest.mark.parametrize(
    "topology, n, links",
    [
        ("v5e:16x16", 1, 2),
        ("v5e:16x16", 16, 2),
        ("v5e:16x16", 32, 4),
        ("v5e:16x16", 256, 4),
        ("v5e:4x4", 16, 2),  # not closed to rings
        ("v5p:4x4x8", 8, 2),
        ("v5p:4x4x8", 16, 4),
        ("v5p:4x4x8", 128, 6),
    ],
)
def test_an_axis_uses_the_links_of_the_dimensions_it_needs(topology, n, links):
    chip, (_, torus) = chips.figures(topology), chips.parse(topology)
    arithmetic = search._Arithmetic(config("125m"), tasks.build(config("125m")), chip, torus, n, 1)
    assert arithmetic._speed(n) == links * chip.link * 1e9


def test_slices_share_the_data_axis():
    kept, _ = search._candidates(config(batch_size=128), "v5e:4x4", 2)
    assert kept and all(c.mesh["data"] % 2 == 0 for c in kept)


def test_a_model_that_cannot_fit_is_refused_before_compiling(compiled):
    with pytest.raises(UserError, match="by arithmetic"):
        searched(config("175b", 512))
    assert not compiled


def test_the_ranking_is_by_seconds(compiled):
    lines = []
    result = searched(log=lines.append)
    seconds = [f.seconds for f in result]
    assert seconds == sorted(seconds) and "not tried" not in lines[-1]
    assert result[0].candidate.mesh["tensor"] == 1
    assert len(result) == len(compiled) and str(result[0].candidate) in "\n".join(lines)


def test_the_lines_for_the_config_choose_the_layout():
    """In a config file they give the planned config; the user's own options stay."""
    c = config()
    with c.unlocked():
        c.train.compiler_options = {"xla_mine": "1"}
    flagged = next(x for x in search._candidates(c, "v5e:4x4", 1)[0] if len(x.options) > 1)
    again = config()
    exec("\n".join(flagged.lines()), {"c": again})
    assert config_lib.to_json(again) == config_lib.to_json(search.apply(c, flagged))
    assert "xla_mine" in again.train.compiler_options
    config_lib.override(again, ["--config.train.compiler_options.xla_other=2"], {})
    assert again.train.compiler_options.xla_other == "2"


@pytest.mark.parametrize(
    "estimates, seconds, ranked",
    [
        # All take twice their estimates: layouts within a tenth of the best are tried.
        (
            [0.5, 1.0, 0.475, 0.6, 0.445, 0.525],
            [1.0, 2.0, 0.95, 1.2, 0.89, 1.05],
            [0.89, 0.95, 1.0],
        ),
        # The second is ruled out by the first, until the third shows that estimates err by more.
        ([1.0, 1.2, 1.09, 1.5], [2.0, 1.7, 1.99, 1.0], [1.7, 1.99, 2.0]),
    ],
)
def test_layouts_that_are_slower_by_estimate_are_not_compiled(
    monkeypatch, estimates, seconds, ranked
):
    some = search._candidates(config(), "v5e:4x4", 1)[0][: len(seconds)]
    some = [c._replace(estimate=e) for c, e in zip(some, estimates)]
    monkeypatch.setattr(search, "_candidates", lambda *_: (some, 0))
    monkeypatch.setattr(
        compile_lib,
        "plans",
        lambda c, *_: [
            made(next(s for x, s in zip(some, seconds) if search.apply(config(), x) == c))
        ],
    )
    lines = []
    result = searched(log=lines.append, seconds_of=lambda plan: plan.work_seconds)
    assert [f.seconds for f in result] == ranked
    others = len(some) - len(ranked)
    assert lines[-1] == f"Compiled 3; by estimate the other {others} are slower or too large."


def planned(monkeypatch, plan):
    """(all layouts of 6.7B on a small slice, those planned so far); plan(candidate) -> its plan."""
    every, _ = search._candidates(config("6.7b", 128), "v5e:4x4", 1)
    done = []

    def plans(c, *_):
        done.append(next(x for x in every if search.apply(config("6.7b", 128), x) == c))
        return [plan(done[-1])]

    monkeypatch.setattr(compile_lib, "plans", plans)
    return every, done


@pytest.mark.slow
def test_a_layout_that_barely_fits_is_tried_if_it_may_be_the_best(monkeypatch):
    every, _ = planned(monkeypatch, lambda c: made(c.estimate))
    room = (1 - search.SPARE) * 15.75 * chips.GIB
    best = min(every, key=lambda c: c.estimate)
    assert best.needs > room > every[0].needs  # others come first
    result = searched(config("6.7b", 128), seconds_of=lambda plan: plan.work_seconds)
    assert result[0].seconds == best.estimate


def test_layouts_larger_than_one_that_did_not_fit_are_not_compiled(monkeypatch):
    every, done = planned(monkeypatch, lambda c: made(c.estimate, 99.0 if c.needs > limit else 4.0))
    limit = sorted(c.needs for c in every)[len(every) // 2]
    searched(config("6.7b", 128), seconds_of=lambda plan: plan.work_seconds)
    for remat in ("dots", "full"):
        failed = [c.needs for c in done if c.remat == remat and c.needs > limit]
        assert failed == sorted(failed, reverse=True) and len(set(failed)) == len(failed)


def test_a_layout_must_leave_some_memory_free(monkeypatch):
    monkeypatch.setattr(compile_lib, "plans", lambda *_: [made(1.0, peak=0.96 * 15.75)])
    with pytest.raises(UserError, match="No layout of this config fits 1 x v5e:4x4"):
        searched()
    with pytest.raises(UserError, match="None of the 1 layouts that were tried fits"):
        searched(minutes=0)


def test_a_search_over_its_budget_ends_after_one_layout(compiled):
    lines = []
    assert len(searched(minutes=0, log=lines.append)) == 1
    assert re.search(r"[1-9]\d* that may be faster were not tried; the same", lines[-1])


def test_a_search_ranks_by_corrected_seconds(compiled):
    """Here the slowest step is corrected to be the fastest."""
    result = searched(seconds_of=lambda plan: 1 / plan.work_seconds)
    assert result[0].plan.work_seconds == max(f.plan.work_seconds for f in result)


def measured(tmp_path, *runs):
    """A file of (topology, work, communication, measured)."""
    path = tmp_path / "runs.jsonl"
    names = "topology", "work_seconds", "communication_seconds", "measured_seconds"
    path.write_text("".join(json.dumps(dict(zip(names, run))) + "\n" for run in runs))
    return str(path)


def test_measured_runs_correct_a_prediction(tmp_path):
    """Real work takes 1.2 of what is predicted, and a third of the communication is not hidden."""
    runs = [("v5e:4x4", 1.0, 0.3), ("v5e:4x4", 2.0, 2.4), ("v5e:8x8", 0.5, 0.9), ("v4:2x2x1", 1, 0)]
    path = measured(tmp_path, *((t, w, c, 1.2 * w + c / 3) for t, w, c in runs))
    calibration = calibrate.read(path, "v5e")
    assert (calibration.work, calibration.communication) == pytest.approx((1.2, 1 / 3))
    assert calibration.runs == 3
    low, high = calibration.range(made(2.0))
    assert (low + high) / 2 == pytest.approx(1.2 * 2 + 1 / 3) and low < high
    assert calibration.expected(made(2.0)) == pytest.approx(1.2 * 2 + 1 / 3)
    two = measured(tmp_path, *((t, w, c, 1.2 * w + c / 3) for t, w, c in runs[:2]))
    assert calibrate.read(two, "v5e").scale  # two factors fit any two runs


@pytest.mark.parametrize("runs", [1, 20])
def test_runs_that_are_alike_scale_the_range(tmp_path, runs):
    """They cannot tell work from communication: neither may become free."""
    path = measured(tmp_path, *[("v5e:4x4", 1.0, 0.5, 1.5 + 0.01 * i) for i in range(runs)])
    calibration = calibrate.read(path, "v5e")
    scale = (1.5 + 0.005 * (runs - 1)) / 1.125  # the median over what is expected of 1.0 to 1.5
    assert calibration.range(made(2.0)) == pytest.approx((2 * scale, 3 * scale))
    assert calibration.expected(made(2.0)) == pytest.approx(scale * 2.25)
    assert "More runs" in str(calibration)


def test_measurements_that_contradict_each_other_leave_seconds_positive(tmp_path):
    runs = [(1, 0.1, 10.0), (1, 0.9, 1.0), (2, 0.1, 1.0)]
    path = measured(tmp_path, *(("v5e:4x4", *run) for run in runs))
    low, high = calibrate.read(path, "v5e").range(made(1.0))
    assert 0 < low < high


GOOD = {"topology": "v5e:4x4", "work_seconds": 1, "communication_seconds": 1, "measured_seconds": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "runs.jsonl has no lines. Each line is what"),
        (b"\xff\xfe", "has no lines"),  # UTF-16 of nothing
        (json.dumps(GOOD | {"topology": "v4:2x2x1"}), "no run on v5e: .* one kind of chip"),
        ("{", "line 1 is not a JSON object"),
        ("[1]", "line 1 is not a JSON object"),
        ("\n" + "9" * 5000, "line 2 is not"),
        ("[" * 100_000, "line 1 is not"),
        ('{"seconds": 1}', "line 1 has no topology, work_seconds, communication_seconds, measured"),
        (json.dumps(GOOD | {"topology": 5}), "has the topology 5, which is not text"),
        (json.dumps(GOOD | {"work_seconds": "1"}), "has work_seconds=1, .* a number of seconds"),
        (json.dumps(GOOD | {"work_seconds": float("nan")}), "has work_seconds=nan"),
        (json.dumps(GOOD | {"work_seconds": 10**400}), "has work_seconds=1000"),
        (json.dumps(GOOD | {"work_seconds": True}), "has work_seconds=True"),
        (json.dumps(GOOD | {"measured_seconds": None}), "has measured_seconds=None"),
        (json.dumps(GOOD | {"measured_seconds": 0}), "has measured_seconds=0, .*positive"),
        (json.dumps(GOOD | {"measured_seconds": float("inf")}), "has measured_seconds=inf"),
        (json.dumps(GOOD | {"communication_seconds": -1}), "has communication_seconds=-1"),
        (b"PK\x03\x04", "zip"),
        (gzip.compress(json.dumps(GOOD).encode(), mtime=0)[:-9], "runs.jsonl"),
    ],
)
def test_an_invalid_file_of_measurements_is_refused(tmp_path, text, message):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        calibrate.read(str(path), "v5e")
    with pytest.raises(UserError, match="cannot read .*none.jsonl.*--calibrate"):
        calibrate.read(str(tmp_path / "none.jsonl"), "v5e")


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: gzip.compress(text.encode()),
        lambda text: b"\n" + text.encode() + b"\n\n",
    ],
    ids=["BOM", "UTF-16", "UTF-16 CRLF", "gzip", "empty lines"],
)
def test_measurements_are_read_as_other_text_files(tmp_path, encode):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(encode((json.dumps(GOOD) + "\n") * 2))
    assert calibrate.read(str(path), "v5e").runs == 2


def page(plan, c=None):
    return command._Page(plan, c or config(), "v5e:4x4", 1, calibrate.NONE)


def test_the_page_of_a_plan():
    text, numbers = page(made(2.0)).text(), page(made(2.0)).numbers()
    assert "4.00 GiB of 15.75: fits" in text
    assert "2.250 s (2.000 s if all communication overlaps, 3.000 s if none)" in text
    assert numbers["fits"] and numbers["step_seconds"] == (2.0, 3.0)
    assert numbers["expected_seconds"] == 2.25
    assert numbers["mfu"] == pytest.approx([1e15 / 16 / 197e12 / s for s in (3.0, 2.0)])
    assert numbers["tokens_per_sec"] == pytest.approx(64 * 2048 / 2.25)


def test_frozen_parts_and_the_unit_are_on_the_page():
    plan = made(2.0, frozen_bytes=0.5 * chips.GIB, unit="images", units=64)
    text, numbers = page(plan).text(), page(plan).numbers()
    rest = 4.0 - 0.5 - 3e9 / chips.GIB
    assert "frozen       0.500 GiB" in text and f"other        {rest:.3f} GiB" in text
    assert "images/s       28 (32, 21)" in text
    assert numbers["images_per_sec"] == pytest.approx(64 / 2.25) and "tokens_per_sec" not in numbers
    assert numbers["frozen_gib"] == 0.5


def test_loops_of_unknown_length_are_on_the_page():
    plan = made(2.0, unknown_loops=2)
    assert "loops          2 of unknown length" in page(plan).text()
    assert page(plan).numbers()["unknown_loops"] == 2
    assert "loops" not in page(made(2.0)).text()


def test_the_advice_for_a_plan_that_does_not_fit():
    much = page(made(0, 18.0)).text()
    assert "DOES NOT FIT, by 2.25 GiB" in much and "model.remat='full' (now 'dots')" in much
    assert "train.accumulate=2 (now 1)" in much
    weights = page(made(0, 40.0, parameter_bytes=8.0 * chips.GIB)).text()
    assert "mesh.fsdp (now -1)" in weights and "23 devices would hold them" in weights


def test_a_family_without_plan_sizes_is_searched_without_remat(compiled, monkeypatch):
    monkeypatch.delattr(gpt, "plan_sizes")
    lines = []
    results = searched(log=lines.append)
    assert "'gpt' does not define plan_sizes" in lines[0] and "model.remat" in lines[0]
    assert results and {r.candidate.remat for r in results} == {""}
