"""The training step of SeqGAN (https://arxiv.org/abs/1609.05473): a round of many updates.

The one key of a batch names the phase of the round (TrainingOptions.round): so the phase follows
from the step, and a resumed run continues exactly in every phase.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import optax

from bigjax import losses, optim
from bigjax.infer.rollout import gather, sample_continuation, scan_tokens
from bigjax.layers.sampling import categorical
from bigjax.projects.seqgan.gan import (
    discriminate,
    repeat_rows,
    sample_texts,
    shift_right,
    token_mask,
)
from bigjax.train.state import State, check_kept

# Rows that are sampled together: more are sampled in turn, so that their logits stay in the cache.
SAMPLE_ROWS = 512


def optimizers(config, options, params) -> dict[str, optax.GradientTransformation]:
    """One per kind of update.

    Maximum likelihood uses config.optim. The others use the same optimizer with the constant
    learning rates of the task and without weight decay. optim.freeze applies to the generator; the
    discriminator is trained in full and its gradients are not clipped.
    """

    def with_rate(rate, **changes):
        c = config.optim.copy_and_resolve_references()
        with c.unlocked():
            c.update(
                **changes,
                learning_rate=rate,
                schedule="constant",
                warmup_steps=0,
                cooldown_steps=0,
                weight_decay=0.0,
                layer_decay=1.0,
            )
        return c

    generator, discriminator = ({k: params[k]} for k in ("generator", "discriminator"))
    mle_updates = max(1, options.mle_rounds * options.mle_updates)
    adversarial = with_rate(options.adversarial_learning_rate)
    discriminator_optim = with_rate(options.discriminator_learning_rate, clip_norm=0.0, freeze="")
    return {
        "mle": optim.make(config.optim, mle_updates, generator),
        "adversarial": optim.make(adversarial, 1, generator),
        "discriminator": optim.make(discriminator_optim, 1, discriminator),
    }


def make_step(task, config, params) -> tuple[Callable, Callable]:
    """Task.make_step: a step is a round."""
    txs = optimizers(config, task.gan.options, params)
    return functools.partial(init_optimizers, txs), make_round(task, txs, config.seed)


def init_optimizers(txs: dict, params) -> dict:
    """The optimizer states, one per kind of update."""
    of = {"mle": "generator", "adversarial": "generator", "discriminator": "discriminator"}
    return {k: tx.init({of[k]: params[of[k]]}) for k, tx in txs.items()}


def make_round(task, txs: dict, seed: int) -> Callable:
    """round(state, frozen, batch) -> (state, metrics): means over its updates, by network.

    batch: {phase: arrays [B, batches, ...]}. A round with a loss or gradient that is not finite
    changes nothing but `step` and `halted`, so that the loop can stop there.
    """
    rollout_rate = task.gan.options.rollout_rate
    phases = {"mle": _maximum_likelihood, "discriminator": _pretrain, "adversarial": _adversarial}

    def run_round(state: State, frozen, batch) -> tuple[State, dict]:
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
        for network in {k.split("/")[0] for k in metrics}:  # the last update may not be finite
            metrics[f"{network}/param_norm"] = optax.tree.norm(new.params[network])
        ok = jnp.isfinite(jnp.stack(list(metrics.values()))).all() & ~state.halted
        new = new._replace(step=state.step + 1)
        check_kept(state, new)
        old = state._replace(step=new.step, halted=jnp.bool_(True))
        return jax.tree_util.tree_map(lambda a, b: jnp.where(ok, a, b), new, old), metrics

    return run_round


def _update(txs, kind: str, network: str, loss: Callable, params, opt_state):
    """One update of a network. loss(its params) -> (loss, metrics).

    Returns its (params, opt_state, metrics), metrics by NETWORK/name.
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


# --- Maximum likelihood -----------------------------------------------------------------------


def _maximum_likelihood(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    gan, o = task.gan, task.gan.options

    def update(carry, item):
        (params, opt_state), (i, batch) = carry, item
        key = jax.random.fold_in(rng, i)
        if o.scheduled_sampling:
            progress = (state.step + 1) / max(1, o.mle_rounds)
            # Not `key` itself: the network's dropout uses split(key), which gives fold_in(key, 0),
            # fold_in(key, 1), ...
            inputs_key = jax.random.fold_in(key, 2**20)
            inputs = _scheduled_inputs(gan, params, batch, progress, inputs_key)
            batch = {**batch, "inputs": inputs}

        def loss(g):
            (total, weight), _ = task.loss({"generator": g}, {}, None, batch, key, True)
            return total / jnp.maximum(weight, 1e-9), {}

        *carry, metrics = _update(txs, "mle", "generator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["generator"], state.opt_state["mle"]
    n = len(rows["tokens"])
    last, metrics = jax.lax.scan(update, first, (jnp.arange(n), rows))
    return _replace(state, "generator", "mle", *last), metrics


def _scheduled_inputs(gan, params, batch, progress, rng) -> jax.Array:
    """Inputs [B, T] for scheduled sampling (https://arxiv.org/abs/1506.03099).

    A share of them, which grows with the rounds, is sampled by the generator given the inputs
    before.
    """
    tokens = batch["tokens"]
    rate = gan.options.scheduled_sampling * progress
    sampled = jax.random.uniform(jax.random.fold_in(rng, 1), tokens.shape) < rate

    def choose(logits, last, entry):
        del last
        token, sampled, key = entry
        return jnp.where(sampled, categorical(logits, key), token)

    variables = {"params": params}
    state = gan.decoder.begin(variables, gan.context(batch), gan.length)
    start = jnp.full(len(tokens), gan.start_id, jnp.int32)
    keys = jax.random.split(jax.random.fold_in(rng, 2), tokens.shape[1])
    new = scan_tokens(gan.decoder, variables, state, start, choose, (tokens.T, sampled.T, keys))
    return shift_right(gan, new)


# --- The generator against the discriminator --------------------------------------------------


def _adversarial(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    o, tree_map = task.gan.options, jax.tree_util.tree_map
    n = o.generator_updates
    state, metrics = _train_generator(task, txs, state, tree_map(lambda x: x[:n], rows), rng)
    if o.constant or not o.discriminator_updates:
        return state, metrics
    rest, key = tree_map(lambda x: x[n:], rows), jax.random.fold_in(rng, n)
    state, more = _train_discriminator(task, txs, state, rest, key, o.discriminator_updates)
    return state, {**metrics, **more}


def _train_generator(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    """Policy-gradient updates (REINFORCE) with the rewards of the discriminator."""
    gan, o = task.gan, task.gan.options
    rollout, reference = state.extras["rollout"], state.extras["reference"]

    def update(carry, item):
        (params, opt_state), (i, batch) = carry, item
        keys = jax.random.split(jax.random.fold_in(rng, i), 4)
        context = gan.context(batch)
        tokens = sample_texts(gan, params, context, keys[0])
        mask = token_mask(gan, tokens)
        rewards = _rewards(gan, rollout, state.params["discriminator"], context, tokens, keys[1])
        weights = mask.astype(jnp.float32)

        def mean(x_BT):
            return (x_BT * weights).sum() / weights.sum()

        metrics = {"reward": mean(rewards)}
        if o.likelihood or o.kl:
            log_q = _log_probability(gan, reference, context, tokens)
            terms = o.likelihood * log_q
            if o.kl:
                kl = _log_probability(gan, params, context, tokens) - log_q
                metrics["kl"] = mean(kl)
                terms -= o.kl * kl
            rewards += _reward_to_go(terms, weights)
        advantage = _advantage(o, rewards, mask)

        def loss(g):
            inputs = shift_right(gan, tokens)
            total, _ = gan.loss(g, context, inputs, tokens, weights * advantage, keys[2])
            value, more = total / weights.sum(), {}
            if o.entropy:
                logits = gan.logits(g, context, inputs, keys[2])
                more["entropy"] = mean(losses.log_probs_and_entropy(logits, tokens)[1])
                value -= o.entropy * more["entropy"]
            if o.teacher_forcing:
                (nll, weight), _ = task.loss({"generator": g}, {}, None, batch, keys[3], True)
                value += o.teacher_forcing * nll / jnp.maximum(weight, 1e-9)
            return value, {**metrics, **more}

        *carry, metrics = _update(txs, "adversarial", "generator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["generator"], state.opt_state["adversarial"]
    n = len(rows["tokens"])
    last, metrics = jax.lax.scan(update, first, (jnp.arange(n), rows))
    return _replace(state, "generator", "adversarial", *last), metrics


def _rewards(gan, policy, discriminator, context, tokens, rng) -> jax.Array:
    """The reward of each token, float32 [B, T]: the mean over rollouts by `policy` that continue
    the text after it; for the last token the reward of the text itself."""
    o, (B, T) = gan.options, tokens.shape
    if o.constant:
        return jnp.full((B, T), 0.5)

    def reward(context, texts, shared=(0, 1)):
        logits, clicks = discriminate(gan, discriminator, context, texts, shared=shared)
        odds = logits[:, 1] - logits[:, 0]
        value = odds if o.reward == "log_odds" else jax.nn.sigmoid(odds)
        return value + gan.click_reward * jax.nn.sigmoid(clicks) if gan.click_reward else value

    of_text = reward(context, tokens)
    if not o.rollouts:
        return jnp.broadcast_to(of_text[:, None], (B, T))
    state = gan.decoder.begin({"params": policy}, context, T)
    variables = {"params": gather(policy)}
    inputs, context, rewards = shift_right(gan, tokens), repeat_rows(context, o.rollouts), []
    for t in range(T - 1):  # each samples only the remaining tokens: half the work of all T
        _, state = gan.decoder.step(variables, state, inputs[:, t])
        prefix = tokens[:, : t + 1]
        if rewards:  # in turn: rollouts that run concurrently compete for cache and memory
            prefix, rewards[-1] = jax.lax.optimization_barrier((prefix, rewards[-1]))
        prefix = repeat_rows(prefix, o.rollouts)
        rest = sample_continuation(
            gan.decoder,
            variables,
            repeat_rows(state, o.rollouts),
            prefix[:, -1],
            jax.random.fold_in(rng, t),
            T - 1 - t,
            end_id=gan.end_id,
            pad_id=gan.pad_id,
        )
        texts = jnp.concatenate([prefix, rest], axis=1)
        shared = t + 1, o.rollouts
        rewards.append(reward(context, texts, shared).reshape(B, o.rollouts).mean(1))
    return jnp.stack([*rewards, of_text], axis=1)


def _log_probability(gan, generator, context, tokens) -> jax.Array:
    """The log-probability of each token given those before it, float32 [B, T]."""
    return losses.log_probs(gan.logits(generator, context, shift_right(gan, tokens), None), tokens)


def _reward_to_go(rewards_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The sum of the rewards of each token and the tokens after it."""
    return jnp.cumsum((rewards_BT * weights_BT)[:, ::-1], axis=1)[:, ::-1]


def _advantage(o, rewards, mask) -> jax.Array:
    """The rewards [B, T] minus the baseline, standardized if o says so, without gradient."""
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


def _pretrain(task, txs, state: State, rows, rng) -> tuple[State, dict]:
    return _train_discriminator(task, txs, state, rows, rng, task.gan.options.pretrain_updates)


def _train_discriminator(task, txs, state: State, rows, rng, n: int) -> tuple[State, dict]:
    """n updates, each on half a batch of real texts and as many generated ones."""
    gan, o = task.gan, task.gan.options
    negatives = o.negatives or len(rows["tokens"])
    sources = jax.tree_util.tree_map(lambda x: x[:negatives], rows)
    fake = {**sources, "tokens": _negatives(gan, state.params["generator"], sources, rng)}

    def halves(x):
        """[U, B, ...] to [n, B / 2, ...]: rows stay on their devices."""
        U, B = x.shape[:2]
        x = x.reshape(U, B // 2, 2, *x.shape[2:]).swapaxes(1, 2)
        x = x.reshape(2 * U, B // 2, *x.shape[3:])
        return jnp.concatenate([x] * -(-n // (2 * U)))[:n]

    real, fake = (jax.tree_util.tree_map(halves, x) for x in (rows, fake))

    def update(carry, item):
        (params, opt_state), (i, real, fake) = carry, item
        # Real and generated texts alternate, so that a device keeps its rows.
        both = jax.tree_util.tree_map(
            lambda a, b: jnp.stack([a, b], 1).reshape(2 * len(a), *a.shape[1:]), real, fake
        )
        label = jnp.tile(jnp.array([1, 0]), len(real["tokens"]))
        loss = functools.partial(_discriminator_loss, gan, both, label, jax.random.fold_in(rng, i))
        *carry, metrics = _update(txs, "discriminator", "discriminator", loss, params, opt_state)
        return tuple(carry), metrics

    first = state.params["discriminator"], state.opt_state["discriminator"]
    last, metrics = jax.lax.scan(update, first, (jnp.arange(n), real, fake))
    return _replace(state, "discriminator", "discriminator", *last), metrics


def _discriminator_loss(gan, batch, label, rng, params) -> tuple[jax.Array, dict]:
    """(loss, metrics) of the discriminator. label: 1 for real texts, 0 for generated ones."""
    context = gan.context(batch)
    logits, clicks = discriminate(gan, params, context, batch["tokens"], rng)
    total, weight = losses.cross_entropy(logits, label, jnp.ones(len(label)))
    value = total / weight + gan.options.discriminator_l2 * gan.penalty(params)
    metrics = {
        "accuracy": (logits.argmax(-1) == label).mean(),
        "cross_entropy": total / weight,
    }
    if clicks is not None:
        metrics["click_loss"] = _click_loss(*gan.clicks(context), clicks, label)
        value += metrics["click_loss"]
    return value, metrics


def _click_loss(quantile, known, logits, label) -> jax.Array:
    """Cross-entropy of the quantile of clicks, over real texts whose clicks are known."""
    weight = known * label
    nll = -(quantile * jax.nn.log_sigmoid(logits) + (1 - quantile) * jax.nn.log_sigmoid(-logits))
    return (nll * weight).sum() / jnp.maximum(weight.sum(), 1)


def _negatives(gan, generator, rows, rng) -> jax.Array:
    """Texts of the generator for rows [U, B, ...]: int32 [U, B, T], many batches together."""
    U, B, T = rows["tokens"].shape
    parts = min(U, -(-U * B // SAMPLE_ROWS))
    per_part = -(-U // parts)
    rows = jax.tree_util.tree_map(  # the first batches again where the last part would be short
        lambda x: jnp.concatenate([x, x[: parts * per_part - U]]), rows
    )

    def sample_part(item):
        key, rows = item
        flat = jax.tree_util.tree_map(
            lambda x: x.swapaxes(0, 1).reshape(per_part * B, *x.shape[2:]), rows
        )
        tokens = sample_texts(gan, generator, gan.context(flat), key)
        return tokens.reshape(B, per_part, T).swapaxes(0, 1)

    rows = jax.tree_util.tree_map(lambda x: x.reshape(parts, per_part, *x.shape[1:]), rows)
    keys = jax.random.split(jax.random.fold_in(rng, 2**20), parts)
    return jax.lax.map(sample_part, (keys, rows)).reshape(-1, B, T)[:U]
