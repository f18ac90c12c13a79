"""Learning rates over steps."""

from collections.abc import Callable

import jax.numpy as jnp

from bigjax.errors import UserError

SHAPES = ("cosine", "linear", "rsqrt", "flat_rsqrt", "constant", "step")


def make_schedule(optim, steps: int) -> Callable:
    """step (0-based) -> learning rate, float32; over `steps` steps.

    Linear warm-up over warmup_steps, from peak / warmup_steps to the peak, then by `schedule`:
    cosine or linear down to final_fraction of the peak at the last step; rsqrt: peak *
    sqrt(w / step), w the warm-up (at least 1); flat_rsqrt: the same, but at the peak from the first
    step on (T5's, https://arxiv.org/abs/1910.10683); constant; step: a tenth after each of
    `boundaries`. The last four may end with a linear cool-down to final_fraction over
    cooldown_steps.
    """
    peak, warmup, cooldown = optim.learning_rate, optim.warmup_steps, optim.cooldown_steps
    shape, final = optim.schedule, optim.final_fraction
    if shape not in SHAPES:
        raise UserError(f"optim.schedule is {shape!r}; allowed: {', '.join(SHAPES)}.")
    if warmup + cooldown > steps:
        raise UserError(
            f"optim.warmup_steps={warmup} + optim.cooldown_steps={cooldown} is more "
            f"than train.steps={steps}. Lower these, or raise that."
        )
    if cooldown and shape in ("cosine", "linear"):
        raise UserError(
            f"optim.schedule={shape!r} already decays to its end: "
            "optim.cooldown_steps is only for rsqrt, flat_rsqrt, constant and step. Set it to 0."
        )
    _check_boundaries(optim)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        part = jnp.clip((step - warmup) / max(steps - 1 - warmup, 1), 0.0, 1.0)
        if shape == "cosine":
            factor = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * part))
        elif shape == "linear":
            factor = final + (1 - final) * (1 - part)
        else:
            w = max(warmup, 1)
            factor = jnp.sqrt(w / jnp.maximum(step + 1, w)) if shape.endswith("rsqrt") else 1.0
            for boundary in optim.boundaries:
                factor = factor * jnp.where(step >= boundary, 0.1, 1.0)
            if cooldown:
                left = jnp.clip((steps - 1 - step) / cooldown, 0.0, 1.0)
                factor = factor * (final + (1 - final) * left)
        rises = warmup and shape != "flat_rsqrt"
        rise = jnp.minimum((step + 1) / warmup, 1.0) if rises else 1.0
        return peak * rise * factor

    return schedule


def _check_boundaries(optim) -> None:
    """Those after the last step of a run have no effect, so that it may be cut short."""
    numbers = optim.boundaries
    if optim.schedule != "step":
        if numbers:
            raise UserError(
                f"optim.boundaries={numbers!r} is for optim.schedule='step', but that is "
                f"{optim.schedule!r}. Set one of them."
            )
        return
    if not numbers or not all(isinstance(n, int) for n in numbers):
        raise UserError(
            f"optim.schedule='step' needs optim.boundaries, steps such as (300, 600), not "
            f"{numbers!r}."
        )
    if list(numbers) != sorted({*numbers}) or numbers[0] < optim.warmup_steps:
        raise UserError(
            f"optim.boundaries={numbers!r} have to increase, from optim.warmup_steps="
            f"{optim.warmup_steps} on."
        )


def change(old, new, step: int, updates: int = 1) -> str:
    """A message if the learning rate of the update after `step` differs between the configs `old`
    and `new`, for example because train.steps stretches a schedule; '' if it is the same. updates:
    of a step."""
    rate = lambda c: float(make_schedule(c.optim, c.train.steps * updates)(step * updates))
    before, now = rate(old), rate(new)
    if before == now:
        return ""
    return (
        f"The learning rate after step {step} is {now:.3g}; with the config of the previous start "
        f"of this run it would be {before:.3g}. It depends on train.steps and the keys of optim."
    )
