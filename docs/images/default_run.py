"""Draws default-run.svg from the work folder of a bare `bigjax train`:

python docs/images/default_run.py runs/gpt-docstrings
"""

import pathlib
import sys

from bigjax import report

COLORS = {"loss": "#9fa8da", "eval/valid/loss": "#283593"}


def draw(workdir: str, out: pathlib.Path) -> None:
    plt = report.pyplot()
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bigjax"})  # small, and stable
    curves = report.read(workdir)
    figure, axis = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    for name, label in (("loss", "training"), ("eval/valid/loss", "validation")):
        marker = "o" if name.startswith("eval/") else None
        axis.plot(*curves[name], color=COLORS[name], label=label, marker=marker, markersize=4)
    steps, values = curves["eval/valid/loss"]
    axis.annotate(f"{values[-1]:.2f}", (steps[-1], values[-1]), (0, 8), textcoords="offset points")
    axis.set(xlabel="step", ylabel="loss, nats per token", title="bigjax train")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    draw(sys.argv[1], pathlib.Path(__file__).with_name("default-run.svg"))
