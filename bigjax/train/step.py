"""One training step: gradient, accumulation, clipping, update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bigjax.layers.vision import fixed_statistics
from bigjax.train.state import State, check_kept
from bigjax.trees import merge, partition


def make_step(
    task,
    tx,
    schedule,
    *,
    seed: int,
    accumulate: int = 1,
    ema: float = 0.0,
    offload: tuple | None = None,
    trained=True,
    updates: int = 1,
    epochs: int = 1,
) -> Callable:
    """step(state, frozen, batch) -> (state, metrics); metrics: float32 scalars by name.

    offload: (shardings of the optimizer's state during its update, shardings between updates).
    trained: which parameters are differentiated, a tree of bools or one for all.
    updates, epochs: of the Task; with several updates the metrics are their means.

    Sums and weights are added over micro-batches in float32 and divided once, so that accumulation
    equals the large batch. If the loss or the gradient is not finite, or the gradient times the
    learning rate, the state keeps the parameters of the last finite step and is halted. If only the
    optimizer's update is not, it is halted after the finite part of the update: its norm is known
    only after the pass over the optimizer's state that applies it. Tracing it raises RunError as
    `check_kept` does.
    """

    def grad(params, extras, frozen, batch, rng):
        """((loss_sum, (weight, metrics, extras)), gradients); None for parameters not trained."""
        parts, fixed = partition(params, trained)

        def loss(parts, extras, frozen, batch, rng):
            params = merge(parts, fixed)
            with fixed_statistics(trained):
                sums, more = task.loss(params, extras, frozen, batch, rng, True)
            (total, weight), (metrics, extras) = sums, more
            return total, (weight, metrics, extras)

        if task.value_and_grad:
            return task.value_and_grad(loss, parts, extras, frozen, batch, rng)
        return jax.value_and_grad(loss, has_aux=True)(parts, extras, frozen, batch, rng)

    def sums(state, frozen, batch):
        """Gradient of the summed loss, and (loss, weight, metrics) sums."""
        rng = step_key(seed, state.step)
        if accumulate == 1:
            (total, (weight, metrics, extras)), g = grad(
                state.params, state.extras, frozen, batch, rng
            )
            return *_float32((g, (total, weight, metrics))), extras
        whole = task.whole_batch(state.params, state.extras, frozen, batch)
        micro = micro_batches(jax.lax.stop_gradient(whole), accumulate)

        def add(carry, item):
            extras, done = carry
            i, part = item
            (total, (weight, metrics, extras)), g = grad(
                state.params, extras, frozen, part, jax.random.fold_in(rng, i)
            )
            new = _float32((g, (total, weight, metrics)))
            return (extras, jax.tree_util.tree_map(jnp.add, done, new)), None

        first = jax.tree_util.tree_map(lambda x: x[0], micro)
        shapes = jax.eval_shape(
            lambda: _sum_parts(grad(state.params, state.extras, frozen, first, rng))
        )
        zeros = jax.tree_util.tree_map(lambda s: jnp.zeros(s.shape), shapes)
        (extras, (g, parts)), _ = jax.lax.scan(
            add, (state.extras, zeros), (jnp.arange(accumulate), micro)
        )
        return g, parts, extras

    def fetched_update(state: State, g, good):
        """tx.update of a state that is kept in host memory.

        It is in a branch, which starts when its condition is known, so that the state is fetched
        after the gradients are computed. With a barrier instead, the compiler fetches it early,
        when memory is scarcest.
        """
        assert offload
        on_device, on_host = offload

        def update(stored):
            before = jax.device_put(stored, on_device)
            updates, after = tx.update(g, before, state.params)
            return updates, jax.device_put(after, on_host)

        return jax.lax.cond(
            good,
            update,
            lambda stored: (jax.tree_util.tree_map(jnp.zeros_like, g), stored),
            state.opt_state,
        )

    def step(state: State, frozen, batch) -> tuple[State, dict]:
        g, (total, weight, metrics), extras = sums(state, frozen, batch)
        weight = jnp.maximum(weight, 1e-9)
        g = jax.tree_util.tree_map(lambda x: x / weight, g)
        grad_norm = optax.tree.norm(g)
        rate = jnp.float32(schedule(state.step))
        # The last part: no norm of an update may overflow that is as long as the gradient, or 1.
        ok = (
            jnp.isfinite(total)
            & jnp.isfinite(grad_norm)
            & jnp.isfinite(jnp.square(rate * (1 + grad_norm)))
            & ~state.halted
        )
        _, fixed = partition(state.params, trained)
        g = merge(g, jax.tree_util.tree_map(jnp.zeros_like, fixed))  # the optimizer ignores these
        if offload:
            updates, opt_state = fetched_update(state, g, ok)
        else:
            updates, opt_state = tx.update(g, state.opt_state, state.params)
        params = merge(partition(optax.apply_updates(state.params, updates), trained)[0], fixed)
        average = state.ema
        if ema:
            average = moved_average(average, {"params": params, **extras}, ema)
        update_norm = optax.tree.norm(updates)
        halted = ~jnp.isfinite(update_norm)
        new = State(state.step + 1, params, opt_state, extras, average, halted)
        check_kept(state, new)
        old = state._replace(step=new.step, halted=jnp.bool_(True))
        if offload:  # fetched_update has kept it; nothing can be computed in host memory
            old = old._replace(opt_state=opt_state)
        new = jax.tree_util.tree_map(lambda a, b: a if a is b else _finite(ok, a, b), new, old)
        return new, {
            "loss": total / weight,
            **{k: s / jnp.maximum(w, 1e-9) for k, (s, w) in metrics.items()},
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(new.params),
            "update_norm": update_norm,
        }

    return step if updates * epochs == 1 else several(task, step, updates, epochs)


def several(task, update: Callable, updates: int, epochs: int) -> Callable:
    """A step of `updates` times `epochs` updates, each on a part of the batch.

    Task.whole_batch completes the batch once, with the parameters before the first update. Within
    `update` state.step counts updates, outside of it steps.
    """
    n = updates * epochs

    def step(state: State, frozen, batch) -> tuple[State, dict]:
        whole = task.whole_batch(state.params, state.extras, frozen, batch)
        parts = micro_batches(jax.lax.stop_gradient(whole), updates)
        at = lambda i: jax.tree_util.tree_map(lambda x: x[i % updates], parts)

        def one(state, i):
            return update(state, frozen, at(i))

        first = state.step
        state, metrics = jax.lax.scan(one, state._replace(step=first * n), jnp.arange(n))
        metrics = jax.tree_util.tree_map(lambda x: x.mean(0), metrics)
        return state._replace(step=first + 1), metrics

    return step


def step_key(seed: int, step) -> jax.Array:
    """The random key of a step; micro-batch i has fold_in(key, i) if there are several."""
    return jax.random.fold_in(jax.random.key(seed), step)


def micro_batches(batch: dict, accumulate: int) -> dict:
    """The arrays [B, ...] of a batch as [accumulate, B / accumulate, ...]. Example r goes to
    micro-batch r % accumulate, so that each is sharded over all devices."""
    return jax.tree_util.tree_map(
        lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )


def mean_gradients(task) -> Callable:
    """gradients(params, extras, frozen, batch, rng) of the mean loss, of all parameters."""

    def mean_loss(params, extras, frozen, batch, rng):
        (total, weight), _ = task.loss(params, extras, frozen, batch, rng, True)
        return total / weight

    return jax.grad(mean_loss)


def moved_average(average, variables, decay: float):
    """The exponential moving average after one more value; integers and booleans are copied."""

    def leaf(a, x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return a + ((1 - decay) * (x - a)).astype(a.dtype) if floating else x

    return jax.tree_util.tree_map(leaf, average, variables)


def packed(step: Callable) -> Callable:
    """The same step with all metrics in one array: one transfer per step, not ten."""

    def packed_step(state, frozen, batch):
        state, metrics = step(state, frozen, batch)
        names = sorted(metrics)
        return state, {" ".join(names): jnp.stack([metrics[k] for k in names])}

    return packed_step


def unpack(metrics: dict) -> dict[str, float]:
    """{name: value} of the metrics of a `packed` step, on the host."""
    return {
        name: float(value)
        for names, values in metrics.items()
        for name, value in zip(names.split(" "), values, strict=True)
    }


def _finite(ok, new, old):
    """new where ok, and where its numbers are finite; old elsewhere."""
    if jnp.issubdtype(new.dtype, jnp.floating):
        ok &= jnp.isfinite(new)
    return jnp.where(ok, new, old)


def _float32(sums):
    return jax.tree_util.tree_map(lambda x: jnp.asarray(x, jnp.float32), sums)


def _sum_parts(value_and_grad):
    (total, (weight, metrics, _)), g = value_and_grad
    return g, (total, weight, metrics)
