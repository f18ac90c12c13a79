"""The cells of examples/quickstart.ipynb, run as a script: no Jupyter is needed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,  # the configs are found wherever bigjax is installed
        env={**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "354,871,296 parameters" in done.stdout
    assert done.stdout.count("step 60/60") == 2  # both trainings came to their end
