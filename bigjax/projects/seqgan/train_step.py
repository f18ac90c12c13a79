"""A round of adversarial training, SeqGAN's (https://arxiv.org/abs/1609.05473).

The loop sees a step function like any other; a step is a round of many updates. Which kind of
round it is the data say (`Options.round`), by the one key of the batch: so it follows from the step
and a resumed run goes on exactly, in every phase.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import optax

from bigjax import losses, optim
from bigjax.layers.sampling import categorical
from bigjax.projects.seqgan.gan import (
    discriminate,
    sample_continuation,
    shift_right,
    states_of,
    token_mask,
    write,
)
from bigjax.train.state import State, check_kept

SAMPLE_ROWS = 512  # rows: more are written in turn, so few that their logits stay in the cache


def optimizers(config, options, params) -> dict[str, optax.GradientTransformation]:
    """One for each kind of update: config.optim for maximum likelihood; for the other two the same
    kind with the task's constant learning rates and without decay. What optim.freeze names of the
    generator stays as it is in all of them; the discriminator is trained whole, and not clipped."""

    def at(rate, **more):
        c = config.optim.copy_and_resolve_references()
        with c.unlocked():
            c.update(
                **more,
                learning_rate=rate,
                schedule="constant",
                warmup_steps=0,
                cooldown_steps=0,
                weight_decay=0.0,
                layer_decay=1.0,
            )
        return c

    generator, discriminator = ({k: params[k]} for k in ("generator", "discriminator"))
    return {
        "mle": optim.make(
            config.optim, max(1, options.mle_rounds * options.mle_updates), generator
        ),
        "adversarial": optim.make(at(options.adversarial_learning_rate), 1, generator),
        "discriminator": optim.make(
            at(options.discriminator_learning_rate, clip_norm=0.0, freeze=""), 1, discriminator
        ),
    }


def make_step(task, config, params) -> tuple[Callable, Callable]:
    """Task.make_step: a step is a round."""
    txs = optimizers(config, task.gan.options, params)
    return functools.partial(init_optimizers, txs), make_round(task, txs, config.seed)


def init_optimizers(txs: dict, params) -> dict:
    """The states of all three; each update has its own."""
    of = {"mle": "generator", "adversarial": "generator", "discriminator": "discriminator"}
    return {k: tx.init({of[k]: params[of[k]]}) for k, tx in txs.items()}


def make_round(task, txs: dict, seed: int) -> Callable:
    """round(state, frozen, batch) -> (state, metrics): means over its updates, by network.

    batch: {phase: arrays [B, batches, ...]}. A round with a loss or gradient that is not finite
    leaves everything as it was before, so that the loop can stop there.
    """
    rollout_rate = task.gan.options.rollout_rate
    phases = {"mle": _maximum_likelihood, "discriminator": _pretrain, "adversarial": _adversarial}

    def one_round(state: State, frozen, batch) -> tuple[State, dict]:
        del frozen
        ((phase, rows),) = batch.items()
        rows = jax.tree_util.tree_map(lambda x: x.swapaxes(0, 1), rows)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        new, metrics = phases[phase](task, txs, state, rows, rng)
        g = new.params["generator"]
        if phase == "adversarial":
            rollout = jax.tree_util.tree_map(
                lambda a, b: b + rollout_rate * (a - b), new.extras["rollout"], g
            )
            new = new._replace(extras={**new.extras, "rollout": rollout})
        else:
            new = new._replace(extras={"rollout": g, "reference": g})
        metrics = {k: v.mean() for k, v in metrics.items()}
        for network in {k.split("/")[0] for k in metrics}:  # the last update may have spoilt them
            metrics[f"{network}/param_norm"] = optax.tree.norm(new.params[network])
        ok = jnp.isfinite(jnp.stack(list(metrics.values()))).all() & ~state.halted
        new = new._replace(step=state.step + 1)
        check_kept(state, new)
        old = state._replace(step=new.step, halted=jnp.bool_(True))
        return jax.tree_util.tree_map(lambda a, b: jnp.where(ok, a, b), new, old), metrics

    return one_round


def _update(txs, kind: str, network: str, loss: Callable, params, opt_state):
    """One update of a network. loss(its params) -> (loss, metrics).

    Returns (params, opt_state, metrics), all of that network, metrics by NETWORK/name.
    """
    (value, metrics), g = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = txs[kind].update({network: g}, opt_state, {network: params})
    params = optax.apply_updates(params, updates[network])
    metrics = {"loss": value, **metrics, "grad_norm": optax.tree.norm(g)}
    return params, opt_state, {f"{network}/{k}": v for k, v in metrics.items()}


def _replace(state: State, network: str, kind: str, params, opt_state) -> State:
    return state._replace(
        params={**state.params, network: params}, opt_state={**state.opt_state, kind: opt_state}
    )


def _maximum_likelihood(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    p, o = task.gan, task.gan.options

    def update(carry, item):
        (params, opt_state), (i, batch) = carry, item
        key = jax.random.fold_in(rng, i)
        if o.scheduled_sampling:
            progress = (state.step + 1) / max(1, o.mle_rounds)
            # Not key itself: the network draws its dropout with split(key), whose parts are
            # fold_in(key, 0), fold_in(key, 1), ...
            own = jax.random.fold_in(key, 2**20)
            batch = {**batch, "inputs": _scheduled_inputs(p, params, batch, progress, own)}

        def loss(g):
            (total, weight), _ = task.loss({"generator": g}, {}, None, batch, key, True)
            return total / jnp.maximum(weight, 1e-9), {}

        *carry, metrics = _update(txs, "mle", "generator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["generator"], state.opt_state["mle"]
    n = len(rows["tokens"])
    done, metrics = jax.lax.scan(update, first, (jnp.arange(n), rows))
    return _replace(state, "generator", "mle", *done), metrics


def _scheduled_inputs(p, params, batch, progress, rng) -> jax.Array:
    """Scheduled sampling (https://arxiv.org/abs/1506.03099): inputs [B, T] of which a share that
    grows with the rounds are the generator's own choices after what it read before."""
    tokens, context = batch["tokens"], p.context(params, batch, None)
    rate = p.options.scheduled_sampling * progress
    own = jax.random.uniform(jax.random.fold_in(rng, 1), tokens.shape) < rate

    def one(carry, item):
        read, state = carry
        token, own, key = item
        logits, state = p.step(params, context, state, read)
        return (jnp.where(own, categorical(logits, key), token), state), read

    start = jnp.full(len(tokens), p.start_id, jnp.int32)
    keys = jax.random.split(jax.random.fold_in(rng, 2), tokens.shape[1])
    return jax.lax.scan(one, (start, p.begin(len(tokens))), (tokens.T, own.T, keys))[1].T


def _pretrain(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    return _discriminator(task, txs, state, rows, rng, task.gan.options.pretrain_updates)


def _adversarial(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    o, tree_map = task.gan.options, jax.tree_util.tree_map
    n = o.generator_updates
    state, metrics = _generator(task, txs, state, tree_map(lambda x: x[:n], rows), rng)
    if o.constant or not o.discriminator_updates:
        return state, metrics
    state, more = _discriminator(
        task,
        txs,
        state,
        tree_map(lambda x: x[n:], rows),
        jax.random.fold_in(rng, n),
        o.discriminator_updates,
    )
    return state, {**metrics, **more}


# --- The generator against the discriminator --------------------------------------------------


def _generator(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    p, o = task.gan, task.gan.options
    rollout, reference = state.extras["rollout"], state.extras["reference"]

    def update(carry, item):
        (params, opt_state), (i, batch) = carry, item
        keys = jax.random.split(jax.random.fold_in(rng, i), 4)
        context = p.context(params, batch, None)
        tokens = write(p, params, context, keys[0], len(batch["tokens"]))
        mask = token_mask(p, tokens)
        rewards = _rewards(p, rollout, state.params["discriminator"], batch, tokens, keys[1])
        weights = mask.astype(jnp.float32)

        def mean(x_BT):
            return (x_BT * weights).sum() / weights.sum()

        metrics = {"reward": mean(rewards)}
        if o.likelihood or o.kl:
            log_p, log_q = (_log_probability(p, g, batch, tokens) for g in (params, reference))
            metrics["kl"] = mean(log_p - log_q)
            rewards += _reward_to_go(o.likelihood * log_q - o.kl * (log_p - log_q), weights)
        advantage = _advantage(o, rewards, mask)

        def loss(g):
            inputs, context = shift_right(p, tokens), p.context(g, batch, keys[2])
            total, _ = p.loss(g, context, inputs, tokens, weights * advantage, keys[2])
            value, more = total / weights.sum(), {}
            if o.entropy:
                log_p = jax.nn.log_softmax(p.logits(g, context, inputs, keys[2]))
                more["entropy"] = mean(-(jnp.exp(log_p) * log_p).sum(-1))
                value -= o.entropy * more["entropy"]
            if o.teacher_forcing:
                (nll, weight), _ = task.loss({"generator": g}, {}, None, batch, keys[3], True)
                value += o.teacher_forcing * nll / jnp.maximum(weight, 1e-9)
            return value, {**metrics, **more}

        *carry, metrics = _update(txs, "adversarial", "generator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["generator"], state.opt_state["adversarial"]
    n = len(rows["tokens"])
    done, metrics = jax.lax.scan(update, first, (jnp.arange(n), rows))
    return _replace(state, "generator", "adversarial", *done), metrics


def _rewards(p, policy, discriminator, given, tokens, rng) -> jax.Array:
    """What each token is worth, float32 [B, T]: the mean reward of texts that go on after it, as
    `policy` writes them; the text's own for the last token."""
    o, (B, T) = p.options, tokens.shape
    if o.constant:
        return jnp.full((B, T), 0.5)

    def reward(given, texts):
        logits, clicks = discriminate(p, discriminator, given, texts)
        odds = logits[:, 1] - logits[:, 0]
        found = odds if o.reward == "log_odds" else jax.nn.sigmoid(odds)
        return found + p.click_reward * jax.nn.sigmoid(clicks) if p.click_reward else found

    def repeat(tree):  # what has no rows, such as the length of a cache, is all rows' own
        return jax.tree_util.tree_map(
            lambda x: jnp.repeat(x, o.rollouts, axis=0) if x.ndim else x, tree
        )

    whole = reward(given, tokens)
    if not o.rollouts:
        return jnp.broadcast_to(whole[:, None], (B, T))
    context = p.context(policy, given, None)
    states = states_of(p, policy, context, tokens)
    context, given, found = repeat(context), repeat(given), []
    for t in range(T - 1):  # each with the length that is left: half the work of drawing all T
        state = repeat(jax.tree_util.tree_map(lambda x: x[t], states))
        if found:  # one after the other: side by side they fight for cache and memory
            state, found[-1] = jax.lax.optimization_barrier((state, found[-1]))
        prefix = repeat(tokens[:, : t + 1])
        rest = sample_continuation(
            p, policy, context, state, prefix[:, -1], jax.random.fold_in(rng, t), T - 1 - t
        )
        texts = jnp.concatenate([prefix, rest], axis=1)
        found.append(reward(given, texts).reshape(B, o.rollouts).mean(1))
    return jnp.stack([*found, whole], axis=1)


def _log_probability(p, generator, given, tokens) -> jax.Array:
    """Of each token after those before it, float32 [B, T]."""
    logits = p.logits(generator, p.context(generator, given, None), shift_right(p, tokens), None)
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def _reward_to_go(rewards_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The sum of a token's reward and of those after it."""
    return jnp.cumsum((rewards_BT * weights_BT)[:, ::-1], axis=1)[:, ::-1]


def _advantage(o, rewards, mask) -> jax.Array:
    """Rewards [B, T] as REINFORCE takes them."""
    weights = mask.astype(jnp.float32)
    mean = (rewards * weights).sum(0) / jnp.maximum(weights.sum(0), 1)
    if o.baseline == "batch":
        rewards = rewards - mean
    if o.standardize:
        variance = (
            jnp.square(rewards - (rewards * weights).sum() / weights.sum()) * weights
        ).sum() / weights.sum()
        rewards = rewards / jnp.sqrt(variance + 1e-8)
    return jax.lax.stop_gradient(rewards)


# --- The discriminator against the generator --------------------------------------------------


def _discriminator(task, txs, state: State, rows, rng, n: int) -> tuple[State, dict]:
    """n updates, each on half a batch of real text and as many that the generator wrote."""
    p, o = task.gan, task.gan.options
    written = o.negatives or len(rows["tokens"])
    theirs = jax.tree_util.tree_map(lambda x: x[:written], rows)
    fake = {**theirs, "tokens": _negatives(p, state.params["generator"], theirs, rng)}

    def halves(x):
        """[U, B, ...] to [n, B / 2, ...]: rows stay on their devices."""
        U, B = x.shape[:2]
        x = x.reshape(U, B // 2, 2, *x.shape[2:]).swapaxes(1, 2)
        x = x.reshape(2 * U, B // 2, *x.shape[3:])
        return jnp.concatenate([x] * -(-n // (2 * U)))[:n]

    real, fake = (jax.tree_util.tree_map(halves, x) for x in (rows, fake))

    def update(carry, item):
        (params, opt_state), (i, real, fake) = carry, item
        # Real and written texts in turn, so that a device keeps its rows.
        both = jax.tree_util.tree_map(
            lambda a, b: jnp.stack([a, b], 1).reshape(2 * len(a), *a.shape[1:]), real, fake
        )
        label = jnp.tile(jnp.array([1, 0]), len(real["tokens"]))

        def loss(d):
            logits, clicks = discriminate(p, d, both, both["tokens"], jax.random.fold_in(rng, i))
            total, weight = losses.cross_entropy(logits, label, jnp.ones(len(label)))
            value = total / weight + o.discriminator_l2 * p.penalty(d)
            metrics = {
                "accuracy": (logits.argmax(-1) == label).mean(),
                "cross_entropy": total / weight,
            }
            if clicks is not None:
                metrics["click_loss"] = _click_loss(*p.clicks(both), clicks, label)
                value += metrics["click_loss"]
            return value, metrics

        *carry, metrics = _update(txs, "discriminator", "discriminator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["discriminator"], state.opt_state["discriminator"]
    done, metrics = jax.lax.scan(update, first, (jnp.arange(n), real, fake))
    return _replace(state, "discriminator", "discriminator", *done), metrics


def _click_loss(quantile, known, logits, label) -> jax.Array:
    """Cross-entropy of the quantile of clicks, over real texts whose clicks are known."""
    weight = known * label
    nll = -(quantile * jax.nn.log_sigmoid(logits) + (1 - quantile) * jax.nn.log_sigmoid(-logits))
    return (nll * weight).sum() / jnp.maximum(weight.sum(), 1)


def _negatives(p, generator, rows, rng) -> jax.Array:
    """What the generator writes for rows [U, B, ...]: int32 [U, B, T], many batches at once."""
    U, B, T = rows["tokens"].shape
    parts = min(U, -(-U * B // SAMPLE_ROWS))
    at_once = -(-U // parts)
    rows = jax.tree_util.tree_map(  # the first ones again where the last part would be short
        lambda x: jnp.concatenate([x, x[: parts * at_once - U]]), rows
    )

    def some(item):
        key, rows = item
        flat = jax.tree_util.tree_map(
            lambda x: x.swapaxes(0, 1).reshape(at_once * B, *x.shape[2:]), rows
        )
        tokens = write(p, generator, p.context(generator, flat, None), key, at_once * B)
        return tokens.reshape(B, at_once, T).swapaxes(0, 1)

    rows = jax.tree_util.tree_map(lambda x: x.reshape(parts, at_once, *x.shape[1:]), rows)
    keys = jax.random.split(jax.random.fold_in(rng, 2**20), parts)
    return jax.lax.map(some, (keys, rows)).reshape(-1, B, T)[:U]
