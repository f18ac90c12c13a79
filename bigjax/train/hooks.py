"""Hooks of the training loop: evaluations, early stopping, checkpoints, signals."""

from collections.abc import Callable
import math
import signal
import time

from bigjax import process
from bigjax.parallel import hosts
from bigjax.train.state import State, split


class Evaluate:
    """Runs an evaluator every `every` steps and at the last one; `write` gets its metrics."""

    def __init__(
        self,
        name: str,
        evaluator: Callable,
        every: int,
        last: int,
        write: Callable[[int, str, dict], None],
        pause: Callable[[float], None],
    ):
        self._name, self._evaluator, self._every, self._last = name, evaluator, every, last
        self._write, self._pause = write, pause

    def due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._last

    def __call__(self, step: int, state: State) -> None:
        start = time.perf_counter()
        params, extras = (state.params, state.extras) if state.ema is None else split(state.ema)
        metrics = self._evaluator(params, extras, step)
        self._pause(time.perf_counter() - start)
        self._write(step, self._name, {f"eval/{self._name}/{k}": v for k, v in metrics.items()})


class EarlyStop:
    """Ends training when a metric has not improved for `patience` evaluations. A value that is not
    finite is not an improvement.

    latest: {last evaluated step: its evaluation metrics}, which the reporter writes.
    `state` is saved in checkpoints, so that a resumed run stops where an uninterrupted one would.
    """

    def __init__(self, config, log: Callable[[str], None]):
        self._config, self._log = config, log
        self.latest: dict[int, dict[str, float]] = {}
        self.state = {
            "metric": config.metric,
            "mode": config.mode,
            "best": None,
            "best_step": 0,
            "bad": 0,
        }

    def restore(self, state: dict) -> None:
        """Continues with a checkpoint's state, unless another metric is watched now."""
        if all(state.get(k) == self.state[k] for k in ("metric", "mode")):
            self.state = state
            if state["best"] is not None and not math.isfinite(state["best"]):
                state.update(best=None, best_step=0)  # an earlier version accepted NaN

    @property
    def stopped(self) -> bool:
        return bool(self._config.metric) and self.state["bad"] >= self._config.patience

    def due(self, step: int) -> bool:
        return self._config.metric in self.latest.get(step, {})

    def __call__(self, step: int, state: State) -> bool:
        value, s, c = self.latest[step][self._config.metric], self.state, self._config
        sign = 1 if c.mode == "min" else -1
        if math.isfinite(value) and (
            s["best"] is None or sign * value < sign * s["best"] - c.min_delta
        ):
            s.update(best=value, best_step=step, bad=0)
        else:
            s["bad"] += 1
        if self.stopped:
            best = "has never been finite"
            if s["best"] is not None:
                best = f"has not improved on {s['best']:.4f} (step {s['best_step']})"
            self._log(
                f"Stopping early at step {step}: {c.metric} {best} in {s['bad']} evaluations."
            )
        return self.stopped


class StopIfLost:
    """Raises lease.Lost when another process has taken over the work folder."""

    def __init__(self, lease):
        self._lease = lease

    def due(self, step: int) -> bool:
        return self._lease.is_lost

    def __call__(self, step: int, state: State) -> None:
        self._lease.check()


class Save:
    """Saves every `every` steps."""

    def __init__(self, save: Callable[[int, State], None], every: int):
        self._save, self._every = save, every

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def __call__(self, step: int, state: State) -> None:
        self._save(step, state)


class StopOnSignal:
    """Ends training after the current step on SIGTERM or the first Ctrl-C.

    On several hosts, when one of them receives a signal, all stop after the same step: `due` has to
    be called after every step from `start` on.
    """

    def __init__(self, start: int):
        self.received: str | None = None  # the signal's name
        self._start, self._many = start, hosts.count() > 1
        self._old = {
            s: signal.signal(s, self._handle)
            for s in (signal.SIGTERM, signal.SIGINT)
            if signal.getsignal(s) != signal.SIG_IGN  # a shell's background job ignores Ctrl-C
        }
        if self._many:
            hosts.watch_for_stop()  # takes SIGTERM

    def _handle(self, number, frame) -> None:
        if signal.SIGINT in self._old:
            signal.signal(signal.SIGINT, process.second_interrupt())
        if self._many:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.received = signal.Signals(number).name

    def due(self, step: int) -> bool:
        if self._many and hosts.stop_agreed(step - self._start):
            self.received = "SIGTERM on one of the hosts"
        return self.received is not None

    def __call__(self, step: int, state: State) -> bool:
        return True

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
