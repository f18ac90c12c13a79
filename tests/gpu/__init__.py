"""Checks on a GPU: `pytest -m gpu -n 0`.

Each has a twin of the same code that runs in the other tests, on a CPU in place of the GPU.
"""

import pytest


def on_both(cases, quick=()):
    """pytest's parameters ("gpu", *case) and ("cpu", *case) for each case, a tuple. The second is
    for the default tests if the case is one of `quick`, else for the slow ones."""
    return [
        pytest.param(platform, *case, marks=marks, id="-".join(map(str, (platform, *case))))
        for case in cases
        for platform, marks in (
            ("gpu", pytest.mark.gpu),
            ("cpu", () if case in quick else pytest.mark.slow),
        )
    ]
