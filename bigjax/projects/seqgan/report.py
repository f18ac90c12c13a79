"""`bigjax seqgan-report`: what adversarial training was worth, judged by an oracle.

A generator can lower its NLL_oracle by writing less variety, and pays with NLL_test. So runs are
compared by NLL_test at equal NLL_oracle, with two that have no discriminator: the control, with
task.reward='constant', and maximum likelihood at other temperatures
(https://arxiv.org/abs/1811.02549). All numbers are nats a token.
"""

import itertools
import json
import math
import re
import statistics
from typing import NamedTuple

from etils import epath
import numpy as np

from bigjax.errors import UserError
from bigjax.report import printed_in_any_case, pyplot, read, save

HOW_TO_READ = (
    "vs control: NLL_test minus that of the control of the same seed (of several the best) where "
    "its\nNLL_oracle was the same; vs sharpened: minus that of a run whose reward has likelihood "
    "too, but no\ndiscriminator; vs temperature: minus the least that maximum likelihood of the "
    "same seed has there at\nany round and temperature. Below zero is better; NLL_oracle alone "
    "says little. '-': there is no other\nsuch run, or it never gets to that NLL_oracle."
)
SAME = (
    "data.params",
    "data.seed",
    "data.d_model",
    "data.sequences",
    "data.seq_len",
    "model.vocab_size",
)  # of runs that can be compared


class Run(NamedTuple):
    """points: {round: (NLL_oracle, NLL_test)} at temperature 1; tempered: those at others, of all
    rounds. split: what NLL_test is of."""

    workdir: str
    config: dict
    split: str
    points: dict[int, tuple[float, float]]
    tempered: list[tuple[float, float]]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def last(self) -> tuple[float, float]:
        return self.points[max(self.points)]

    @property
    def kind(self) -> str:
        task = self.config["task"]
        constant = task["reward"] == "constant"  # there is no discriminator then
        before = task["mle_rounds"] + (0 if constant else task["discriminator_rounds"])
        if self.config["train"]["steps"] > before:
            if constant:
                return "sharpened" if task["likelihood"] else "control"
            return "adversarial"
        return "scheduled sampling" if task["scheduled_sampling"] else "MLE"


def draw(workdirs: list[str], out: str | None) -> str:
    """Writes the picture and returns its path and a table, one row for the seeds of a config.

    Raises UserError if no work folder is given, one was not evaluated by an oracle, or they were
    by different ones.
    """
    if not workdirs:
        raise UserError("Name the runs: --workdir=A --workdir=B ...")
    runs = [read_run(w) for w in dict.fromkeys(workdirs)]
    _check_same_oracle(runs)
    groups = _groups(runs)
    path = out or str(epath.Path(workdirs[0]) / "seqgan-report.png")
    if epath.Path(path).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out={path} must end in .png, .pdf or .svg.")
    table = f"{_table(groups, runs)}\n\n{HOW_TO_READ}"
    with printed_in_any_case(table):
        _picture(groups, runs, path)
    return f"{table}\nWrote {path}"


def read_run(workdir: str) -> Run:
    """A run's config and what an oracle said of it. Raises UserError if none did."""
    curves = read(workdir)
    path = epath.Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_bytes())
        splits = {
            name: entry["split"]
            for name, entry in config["evals"].items()
            if f"eval/{name}/nll_oracle" in curves
        }
    except (
        *(FileNotFoundError, ValueError, KeyError, TypeError),
        *(AttributeError, RecursionError),
    ) as e:
        raise UserError(
            f"{path} is no config of a run ({e!r}). It is written when a run starts; "
            "restore it, or leave this run out."
        ) from e
    if not splits:
        raise UserError(
            f"{workdir!r} has no metrics eval/NAME/nll_oracle: only runs with "
            "task.name='seqgan.oracle' and an evaluation of kind 'seqgan.oracle_eval' can "
            "be compared here. Leave it out; `bigjax report` draws any run."
        )
    split = "test" if "test" in splits.values() else min(splits.values())
    points, tempered = {}, []
    for key, (rounds, nll_oracle) in curves.items():
        found = re.fullmatch("eval/(.+)/nll_oracle(_.+)?", key)
        if not found or splits.get(found[1]) != split:
            continue
        nll_test = curves[f"eval/{found[1]}/nll_test{found[2] or ''}"][1]  # written together
        if found[2]:
            tempered += zip(nll_oracle, nll_test)
        else:
            points.update(zip(rounds, zip(nll_oracle, nll_test)))
    return Run(workdir, config, split, dict(sorted(points.items())), tempered)


def _check_same_oracle(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        pairs = [
            (k, first.config[s][name], run.config[s][name])
            for k in SAME
            for s, name in [k.split(".")]
        ]
        pairs.append(("the oracle's evaluation split", first.split, run.split))
        wrong = [f"{k} is {a!r} and {b!r}" for k, a, b in pairs if a != b]
        if wrong:
            raise UserError(
                f"{first.workdir!r} and {run.workdir!r} were judged by different "
                f"oracles: {'; '.join(wrong)}. Their numbers cannot be compared: "
                "report on them one after the other."
            )


def _groups(runs: list[Run]) -> dict[str, list[Run]]:
    """{label: runs whose configs differ in the seed, and in what they started from, alone}."""
    groups = {}
    for run in runs:
        config = {
            k: v for k, v in run.config.items() if k not in ("seed", "resume_from", "init_from")
        }
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(run)

    def labels(name) -> list[str]:
        return [
            ", ".join(
                dict.fromkeys(
                    re.sub(rf"(.)([-_]|[-_]?s)0*{run.seed}$", r"\1", name(run)) for run in group
                )
            )
            for group in groups.values()
        ]

    found = labels(lambda run: epath.Path(run.workdir).name)
    if len(set(found)) < len(groups):  # such as a/gan and b/gan
        found = labels(lambda run: run.workdir)
    if len(set(found)) < len(groups):  # such as gan-0 and gan_0
        found = [", ".join(run.workdir for run in group) for group in groups.values()]
    return dict(zip(found, groups.values()))


# --- NLL_test at equal NLL_oracle -------------------------------------------------------------


def on_path(points: list[tuple[float, float]], x: float) -> float:
    """The least y at which the line through the points, in their order, passes x; else nan."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise([*points, points[-1]]):
        if min(x0, x1) <= x <= max(x0, x1):
            found.append(y0 + (y1 - y0) * ((x - x0) / (x1 - x0) if x1 != x0 else 0))
    return min(found, default=math.nan)


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of the points, from the leftmost to the lowest.

    It is a fair envelope: two generators of which one is drawn for each text have the NLL_oracle
    between theirs and, as -log is convex, an NLL_test on the chord or below it. Chords between
    the neighbours of a Pareto front can lie above that, which would flatter what is compared.
    """
    out = []
    for x, y in sorted(points):
        while len(out) > 1 and (
            (out[-1][0] - out[-2][0]) * (y - out[-2][1])
            <= (out[-1][1] - out[-2][1]) * (x - out[-2][0])
        ):
            out.pop()
        out.append((x, y))
    lowest = min(range(len(out)), key=lambda i: out[i][1])
    return out[: lowest + 1]


def _envelope(runs: list[Run], seed: int) -> list[tuple[float, float]]:
    """What maximum likelihood of a seed reaches at all rounds and temperatures; [] if 1 is all."""
    mle = [r for r in runs if r.kind == "MLE" and r.seed == seed]
    if not any(r.tempered for r in mle):
        return []
    return hull([p for r in mle for p in (*r.points.values(), *r.tempered)])


def versus(kind: str, run: Run, runs: list[Run]) -> float:
    """A run's last NLL_test minus that of another run of this kind at equal NLL_oracle."""
    x, y = run.last
    found = [
        on_path([*r.points.values()], x)
        for r in runs
        if r.kind == kind and r.seed == run.seed and r is not run
    ]
    return y - min((v for v in found if not math.isnan(v)), default=math.nan)


def vs_temperature(run: Run, runs: list[Run]) -> float:
    """A run's last NLL_test minus that of the envelope at equal NLL_oracle. Right of the envelope's
    lowest point that point is better in both, so it counts there."""
    x, y = run.last
    envelope = _envelope(runs, run.seed)
    return y - np.interp(x, *zip(*envelope), left=math.nan) if envelope else math.nan


# --- Text and picture -------------------------------------------------------------------------


def _table(groups: dict[str, list[Run]], runs: list[Run]) -> str:
    rows = [
        (
            "",
            "kind",
            "seeds",
            "round",
            "NLL_oracle",
            "NLL_test",
            "vs control",
            "vs sharpened",
            "vs temperature",
        )
    ]
    for label, group in groups.items():
        rounds = sorted({max(run.points) for run in group})
        rows.append(
            (
                label,
                group[0].kind,
                " ".join(str(run.seed) for run in group),
                "-".join(map(str, dict.fromkeys((rounds[0], rounds[-1])))),
                spread([run.last[0] for run in group]),
                spread([run.last[1] for run in group]),
                *(
                    spread([versus(kind, run, runs) for run in group], "+")
                    for kind in ("control", "sharpened")
                ),
                spread([vs_temperature(run, runs) for run in group], "+"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths)).rstrip() for row in rows
    )


def spread(values: list[float], sign: str = "-") -> str:
    """Mean ± sample standard deviation of those that are numbers, and how many are if not all."""
    known = [float(v) for v in values if not math.isnan(v)]
    if not known:
        return "-"
    text = f"{statistics.mean(known):{sign}.3f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.3f}"
    return text + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def _picture(groups: dict[str, list[Run]], runs: list[Run], path: str) -> None:
    plt = pyplot()

    figure, (*over_rounds, plane) = plt.subplots(1, 3, figsize=(18, 6), layout="constrained")
    for i, (label, group) in enumerate(groups.items()):
        common = sorted(set.intersection(*(set(run.points) for run in group)))
        for run in group:
            for k, axis in enumerate(over_rounds):
                axis.plot(
                    [*run.points], [p[k] for p in run.points.values()], color=f"C{i}", linewidth=0.6
                )
            plane.plot(*zip(*run.points.values()), color=f"C{i}", linewidth=0.6)
            plane.plot(
                *run.last, color=f"C{i}", marker="o", label=label if run is group[0] else None
            )
        for k, axis in enumerate(over_rounds):  # the mean of the seeds
            axis.plot(
                common,
                [statistics.mean(run.points[step][k] for run in group) for step in common],
                color=f"C{i}",
                linewidth=2,
                label=label,
            )
    label = "MLE at its best temperature"
    for seed in sorted({run.seed for run in runs}):
        if envelope := _envelope(runs, seed):
            plane.plot(*zip(*envelope), color="black", linestyle="--", linewidth=0.8, label=label)
            label = None
    for axis, title in zip(over_rounds, ("NLL_oracle", "NLL_test")):
        axis.set(title=title, xlabel="round", ylabel="nats a token")
        axis.xaxis.get_major_locator().set_params(integer=True)
    plane.set(
        title="NLL_test against NLL_oracle (points: the last round)",
        xlabel="NLL_oracle, nats a token",
        ylabel="NLL_test, nats a token",
    )
    for axis in (*over_rounds, plane):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, path, dpi=110, format=epath.Path(path).suffix[1:])
