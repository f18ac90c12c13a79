"""Rewards of completions: functions of the user's own, and models that were trained here."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import math
import numbers
import traceback
from typing import Any

import jax
import numpy as np

from bigjax import modules, paths
from bigjax.errors import UserError
from bigjax.json_text import shown
from bigjax.parallel import hosts
from bigjax.tasks import Reward

_ROWS = 32  # that a reward model scores at once, on each device
# (prompts, completions, columns: {name: value of each}) -> a number for each completion
Scorer = Callable[[Sequence[Any], Sequence[str], Mapping[str, Sequence[Any]]], Sequence[float]]


class BadReward(UserError):
    """A reward failed during training; the state before its step is complete."""


def build(rewards: Mapping[str, Reward], columns: Sequence[str], config) -> dict[str, Scorer]:
    """{name: its function} of task.rewards. columns: those of the data beside the prompt.

    Raises UserError for a function that does not exist or needs other columns, and for a run that
    scores no text.
    """
    return {
        name: (_function if r.kind == "function" else _run)(name, r, columns, config)
        for name, r in rewards.items()
    }


def score(
    scorers: Mapping[str, Scorer],
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    step: int,
) -> np.ndarray:
    """float32 [n, R] of n completions. step: for messages.

    Raises BadReward, with its traceback for one that raises, and for a reward that is not a finite
    number, or another number of rewards than of completions.
    """
    table = np.zeros((len(completions), len(scorers)), np.float32)
    columns_of = {name: i for i, name in enumerate(scorers)}
    # Models first: all processes have to reach them, and a function may fail on one of them.
    order = sorted(scorers, key=lambda name: not isinstance(scorers[name], Together))
    for name in order:
        scorer, column = scorers[name], columns_of[name]
        what = f"The reward {name!r} (config.task.rewards.{name})"
        try:
            values = scorer(prompts, completions, columns)
            listed = _listed(values)
            table[:, column] = _numbers(listed, len(completions))
        except UserError:
            raise
        except Exception as e:  # of the function, or of what it returned, such as a generator
            raise BadReward(
                f"{what} raised {type(e).__name__} at step {step}: {e}. Correct it and run the "
                f"same command; the run resumes before this step.\n{_traceback(e)}"
            ) from e
        _check(values, listed, what, step, len(completions))
        for i in np.flatnonzero(np.isnan(table[:, column])):
            raise BadReward(
                f"{what} gave {_shown(listed[i])} at step {step}; it must be a finite number, "
                f"within the range of float32. The prompt: {_brief(prompts[i])}. The "
                f"completion: {_brief(completions[i])}. Correct it and run the same "
                "command; the run resumes before this step."
            )
    return table


def _listed(values: Any) -> list | None:
    """The values, with scalars of arrays as numbers; None if they cannot be iterated."""
    try:
        iterator = iter(values)
    except TypeError:
        return None
    return [x.item() if hasattr(x, "item") and np.ndim(x) == 0 else x for x in iterator]


def _numbers(values: list | None, n: int) -> list[float]:
    """n numbers, NaN for values that are no rewards."""
    rewards = [float(x) if _is_reward(x) else math.nan for x in values or ()]
    return rewards if len(rewards) == n else [0.0] * n


def _is_reward(value: Any) -> bool:
    return isinstance(value, numbers.Real) and abs(value) < 3.4e38


def _check(values: Any, listed: list | None, what: str, step: int, n: int) -> None:
    if listed is None:
        raise BadReward(
            f"{what} returned {_shown(values)} at step {step}; it must return a list of "
            "numbers, one for each completion."
        )
    if len(listed) != n:
        raise BadReward(
            f"{what} returned {len(listed):,} rewards for {n:,} completions at step {step}. It "
            "must return one for each, in their order."
        )


def _shown(value: Any) -> str:
    try:
        return shown(value)
    except Exception:  # such as of an int of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def _traceback(error: Exception) -> str:
    """From the frame of the user's function on."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if frame.filename == __file__]
    return "".join(traceback.format_list(frames[own[-1] + 1 if own else 0 :])).rstrip()


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _function(name: str, reward: Reward, columns: Sequence[str], config) -> Scorer:
    key = f"task.rewards.{name}.path"
    function = modules.function(reward.path, key, config.python_path)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function without a signature, such as a builtin
        parameters = {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = ("prompts", "completions")
    missing = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and n not in (*own, *columns)
    ]
    if missing or parameters and not takes_all and not set(own) <= set(parameters):
        raise UserError(
            f"config.{key}={reward.path!r} has the parameters ({', '.join(parameters)}), but it is "
            "called with prompts, completions, and those columns of the data that it names: "
            f"{', '.join(columns) or 'there are none'}. Correct its parameters."
        )
    wanted = [n for n in columns if takes_all or n in parameters]

    def scorer(prompts, completions, values):
        return function(
            prompts=list(prompts),
            completions=list(completions),
            **{n: list(values[n]) for n in wanted},
        )

    return scorer


def _run(name: str, reward: Reward, columns: Sequence[str], config) -> Scorer:
    """A trained model as a reward. Loading one makes its own mesh the current one."""
    del columns
    from bigjax.train import workdir as workdir_lib

    mesh = jax.sharding.get_mesh()
    folder = paths.expand(reward.path, f"config.task.rewards.{name}.path")
    task = workdir_lib.read_config(folder).task.name
    try:
        if task == "reward":
            return Together(mesh, _reward_model(folder))
        if task == "classify":
            from bigjax.train.text_scores import TextScores

            scores = TextScores(folder, reward, f"config.task.rewards.{name}")
            return Together(mesh, scores)
    finally:
        jax.set_mesh(mesh)
    raise UserError(
        f"config.task.rewards.{name}.path={reward.path!r} was trained with task.name={task!r}, "
        "which scores no texts. Name a run with task.name='reward' or 'classify'."
    )


def _reward_model(folder: str) -> Callable:
    """A reward model on all devices; a prompt that is a text is a user's message to it."""
    from bigjax.train import reward_model
    from bigjax.train import workdir as workdir_lib

    config = workdir_lib.read_config(folder)
    with config.unlocked():
        config.mesh.update(dict.fromkeys(config.mesh, 1) | {"data": -1})
    model = reward_model.open_run(folder, None, _ROWS * jax.device_count(), config=config)
    as_turn = lambda prompt: [{"role": "user", "content": prompt}]
    return lambda prompts, completions: model(
        [as_turn(p) if isinstance(p, str) else p for p in prompts], completions
    )


class Together:
    """A model as a Scorer. All processes score the completions of all of them, as its program runs
    on all devices; then the mesh of the run is the current one again."""

    def __init__(self, mesh, model: Callable) -> None:
        self._mesh, self._model = mesh, model

    def __call__(self, prompts, completions, columns) -> np.ndarray:
        del columns
        parts = hosts.gather([list(prompts), list(completions)])
        given, written = ([x for part in parts for x in part[i]] for i in (0, 1))
        first = sum(len(part[1]) for part in parts[: hosts.index()])
        try:
            scores = self._model(given, written)
        finally:
            jax.set_mesh(self._mesh)
        return np.asarray(scores)[first : first + len(completions)]
