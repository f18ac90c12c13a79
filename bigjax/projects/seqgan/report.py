"""`bigjax seqgan-report`: the benefit of adversarial training, measured with an oracle.

A generator can lower its NLL_oracle with less diverse texts, at the cost of NLL_test. So runs are
compared by NLL_test at equal NLL_oracle, with two baselines that have no discriminator: the
control, with task.reward='constant', and maximum likelihood at other temperatures
(https://arxiv.org/abs/1811.02549). All numbers are in nats per token.
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
from bigjax.report import check_suffix, printing_on_failure, pyplot, read, save

HOW_TO_READ = (
    "vs control: NLL_test minus that of the control with the same seed (the best of several) at "
    "the same\nNLL_oracle; vs sharpened: minus that of a run with a likelihood reward and no "
    "discriminator; vs\ntemperature: minus the lowest of maximum likelihood with the same seed, "
    "over all rounds and\ntemperatures. Negative is better; NLL_oracle alone is not enough. '-': "
    "no such run, or it never\nreaches that NLL_oracle."
)
SAME = (
    "data.params",
    "data.seed",
    "data.d_model",
    "data.sequences",
    "data.seq_len",
    "model.vocab_size",
)  # must be equal in runs that are compared


class Run(NamedTuple):
    """points: {round: (NLL_oracle, NLL_test)} at temperature 1; tempered: those at all other
    temperatures and rounds. split: the one that NLL_test is computed on."""

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
        constant = task["reward"] == "constant"  # no discriminator
        before = task["mle_rounds"] + (0 if constant else task["discriminator_rounds"])
        if self.config["train"]["steps"] > before:
            if constant:
                return "sharpened" if task["likelihood"] else "control"
            return "adversarial"
        return "scheduled sampling" if task["scheduled_sampling"] else "MLE"


def draw(workdirs: list[str], out: str | None) -> str:
    """Writes the picture; returns its path and a table with one row per config, over its seeds.

    Raises UserError for no work folders, for a run without an oracle's evaluation, and for runs
    with different oracles.
    """
    if not workdirs:
        raise UserError("Name the runs: --workdir=A --workdir=B ...")
    runs = [read_run(w) for w in dict.fromkeys(workdirs)]
    _check_same_oracle(runs)
    groups = _groups(runs)
    path = out or str(epath.Path(workdirs[0]) / "seqgan-report.png")
    check_suffix(out)
    table = f"{_table(groups, runs)}\n\n{HOW_TO_READ}"
    with printing_on_failure(table):
        _picture(groups, runs, path)
    return f"{table}\nWrote {path}"


def read_run(workdir: str) -> Run:
    """A run's config and its evaluations. Raises UserError if it has none by an oracle."""
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
            f"{path} is not the config of a run ({e!r}). It is written when a run starts: "
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
        match = re.fullmatch("eval/(.+)/nll_oracle(_.+)?", key)
        if not match or splits.get(match[1]) != split:
            continue
        nll_test = curves[f"eval/{match[1]}/nll_test{match[2] or ''}"][1]  # written together
        if match[2]:
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
                f"{first.workdir!r} and {run.workdir!r} were evaluated with different "
                f"oracles: {'; '.join(wrong)}. Their numbers cannot be compared: "
                "report on each separately."
            )


def _groups(runs: list[Run]) -> dict[str, list[Run]]:
    """{label: runs whose configs differ only in the seed and the checkpoint they start from}."""
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

    names = labels(lambda run: epath.Path(run.workdir).name)
    if len(set(names)) < len(groups):  # such as a/gan and b/gan
        names = labels(lambda run: run.workdir)
    if len(set(names)) < len(groups):  # such as gan-0 and gan_0
        names = [", ".join(run.workdir for run in group) for group in groups.values()]
    return dict(zip(names, groups.values()))


# --- NLL_test at equal NLL_oracle -------------------------------------------------------------


def on_path(points: list[tuple[float, float]], x: float) -> float:
    """The lowest y where the line through the points, in their order, crosses x; nan if nowhere."""
    crossings = []
    for (x0, y0), (x1, y1) in itertools.pairwise([*points, points[-1]]):
        if min(x0, x1) <= x <= max(x0, x1):
            crossings.append(y0 + (y1 - y0) * ((x - x0) / (x1 - x0) if x1 != x0 else 0))
    return min(crossings, default=math.nan)


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of the points, from the leftmost to the lowest.

    It is a fair envelope: a mixture of two generators has an NLL_oracle between theirs and, as -log
    is convex, an NLL_test on the chord or below it. Chords between neighbours on a Pareto front can
    lie above that, which would favour the run that is compared.
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
    """The hull of maximum likelihood over all rounds and temperatures for a seed; [] without other
    temperatures than 1."""
    mle = [r for r in runs if r.kind == "MLE" and r.seed == seed]
    if not any(r.tempered for r in mle):
        return []
    return hull([p for r in mle for p in (*r.points.values(), *r.tempered)])


def versus(kind: str, run: Run, runs: list[Run]) -> float:
    """A run's last NLL_test minus the best of other runs of this kind at equal NLL_oracle."""
    x, y = run.last
    others = [
        on_path([*r.points.values()], x)
        for r in runs
        if r.kind == kind and r.seed == run.seed and r is not run
    ]
    return y - min((v for v in others if not math.isnan(v)), default=math.nan)


def vs_temperature(run: Run, runs: list[Run]) -> float:
    """A run's last NLL_test minus that of the envelope at equal NLL_oracle. Right of its lowest
    point the envelope is flat, as that point is better in both."""
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
    """Mean ± sample standard deviation without NaNs, and their number if there are any NaNs."""
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
        axis.set(title=title, xlabel="round", ylabel="nats per token")
        axis.xaxis.get_major_locator().set_params(integer=True)
    plane.set(
        title="NLL_test against NLL_oracle (points: the last round)",
        xlabel="NLL_oracle, nats per token",
        ylabel="NLL_test, nats per token",
    )
    for axis in (*over_rounds, plane):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, path, dpi=110)
