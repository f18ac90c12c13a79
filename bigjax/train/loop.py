"""The training loop: state, step function, batches, hooks. It knows no model, data or files."""

from collections.abc import Callable, Iterator
import time
from typing import Any, Protocol

import jax


class Interrupted(Exception):
    """A step_fn raises it before it uses the state: the loop ends after the step before."""


class Hook(Protocol):
    """An action between steps."""

    def due(self, step: int) -> bool:
        """Whether to call the hook after this step."""

    def __call__(self, step: int, state: Any) -> bool | None:
        """Called when the metrics of all steps so far are reported. True ends the loop."""


def run(
    state: Any,
    step_fn: Callable,
    batches: Iterator,
    *,
    start: int,
    steps: int,
    report: Callable[[int, dict, float], bool],
    hooks: list[Hook],
) -> tuple[Any, int]:
    """Trains from `start` to `steps` updates; returns (state, number of updates done).

    step_fn(state, batch) -> (state, metrics). report(step, metrics, waited) is called with each
    step's metrics on the host, one step late so that the device never waits for the host, and with
    the seconds that the step waited for data. If it returns True the loop ends without calling more
    hooks.
    """
    pending = None

    def flush() -> bool:
        nonlocal pending
        if not pending:
            return False
        (step, metrics, waited), pending = pending, None
        return report(step, jax.device_get(metrics), waited)

    done = start
    while done < steps:
        before = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - before
        try:
            state, metrics = step_fn(state, batch)
        except Interrupted:
            break
        done += 1
        if flush():
            return state, done
        pending = (done, metrics, waited)
        end = False
        for hook in hooks:
            if hook.due(done):
                if flush():
                    return state, done
                end |= bool(hook(done, state))
        if end:
            break
    flush()
    return state, done
