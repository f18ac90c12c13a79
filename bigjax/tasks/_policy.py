"""What the tasks of reinforcement share: the policy, its log-probabilities, and the batches.

Shapes: B prompts of at most S tokens, G completions of each of at most N tokens; a row of the model
is a prompt with one completion right after it, T = data.seq_len = S + N tokens.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.bounds import POSITIVE, at_least, check_ranges
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.layers.output import linear_log_probs_and_entropy
from bigjax.losses import policy
from bigjax.tasks import (
    Frozen,
    Reward,
    Rollouts,
    Task,
    apply,
    array_shapes,
    check_vocabulary,
    data_module,
    family_for,
    flops_per_token,
    init_and_axes,
    output_layer,
)
from bigjax.tasks._peft import REFERENCE
from bigjax.tasks._reference import reference_part


@dataclasses.dataclass(frozen=True)
class Config:
    """The keys of all tasks of reinforcement."""

    # NAME: dict(kind="function", path="my_module:function", weight=1.0), or of kind="run"
    rewards: dict[str, Reward] = dataclasses.field(default_factory=dict)
    samples: int = 8  # completions of each prompt
    max_new_tokens: int = 64  # of a completion; data.seq_len holds it with its prompt
    temperature: float = 1.0  # of the sampling, and of the log-probabilities in the loss
    updates: int = 1  # optimizer updates of a step, each on other prompts of its batch
    epochs: int = 1  # how often they are repeated
    clip_low: float = 0.2  # the ratio of probabilities is clipped to 1 - clip_low
    clip_high: float = 0.2  # ... and to 1 + clip_high
    beta: float = 0.0  # weight of the divergence from the reference; 0 = no reference is loaded
    reference: str = ""  # a run or a Hugging Face folder; '' = init_from, or the base of peft
    sampler_cap: float = 2.0  # of the weights that correct for the sampler; 0 = no weights
    mask_truncated: bool = False  # completions without an end token are not learned
    overlong_tokens: int = 0  # so many tokens before max_new_tokens the reward begins to fall, by 1
    show_every: int = 10  # steps between the lines of samples.jsonl; 0 = none
    # The content of the file data.chat_template; a run fills it in, so that it holds all of itself
    chat_template: str = ""

    RANGES = {
        "samples": at_least(1),
        "max_new_tokens": at_least(1),
        "temperature": POSITIVE,
        "updates": at_least(1),
        "epochs": at_least(1),
        "clip_low": at_least(0),
        "clip_high": at_least(0),
        "beta": at_least(0),
        "sampler_cap": at_least(0),
        "overlong_tokens": at_least(0),
        "show_every": at_least(0),
    }
    MAY_CHANGE = (
        *("rewards.*", "temperature", "clip_*", "sampler_cap", "mask_truncated", "show_*"),
        "reference",  # another folder with the same parameters: they have a fingerprint
    )
    PATHS = ("reference",)

    def __post_init__(self):
        check_ranges("task", self)
        if not self.beta and self.reference:
            raise UserError(
                f"task.reference={self.reference!r} has no effect with task.beta=0. Set task.beta, "
                "the weight of the divergence from it, or leave task.reference empty."
            )
        if self.overlong_tokens > self.max_new_tokens:
            raise UserError(
                f"task.overlong_tokens={self.overlong_tokens} is more than task.max_new_tokens="
                f"{self.max_new_tokens}."
            )


class Policy(NamedTuple):
    """The model of a task, as pure functions.

    init, axes: of the Task. config: of the model. parts: how many micro-batches a rollout has.
    forward(params, extras, batch) -> (log_probs, entropy, values), each float32 [B, G, N]; values
    are None for a model without them. reference(frozen, batch) -> log_probs of the reference.
    """

    family: Any
    config: Any
    init: Callable
    axes: Any
    model: Any
    parts: int
    forward: Callable[[Any, Any, Mapping], tuple]
    reference: Callable[[Any, Mapping], jax.Array]
    frozen: dict[str, Frozen]


def make_policy(config, options: Config, valued: bool = False) -> Policy:
    """The policy of a config. valued: with a value head. Raises UserError for a model that cannot
    write, for other data than prompts, and for options that do not suit the config."""
    data_module(config, "load_prompts", "prompts")
    family, c = family_for(
        config,
        "a family that defines Model and decoder, such as model.name='gpt'",
        needs=("Model", "decoder"),
    )
    if not options.rewards:
        raise UserError(
            "task.rewards is empty: there is nothing to learn from. Set it, such as to "
            "dict(right=dict(kind='function', path='my_module:function'))."
        )
    if config.data.seq_len <= options.max_new_tokens:
        raise UserError(
            f"data.seq_len={config.data.seq_len} leaves no room for a prompt beside "
            f"task.max_new_tokens={options.max_new_tokens}. Raise data.seq_len."
        )
    plain_init, plain_axes = init_and_axes(family.Model, c)
    model, init, axes = family.Model(c), plain_init, plain_axes
    if valued:
        from bigjax.models._valued import Valued

        model, (init, axes) = Valued(model), init_and_axes(lambda c: Valued(family.Model(c)), c)

    def forward_of(model):
        def forward(params, extras, batch):
            tokens, at = rows_of(batch)
            out, _ = apply(model, params, extras, False, tokens)
            out, values = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
            linear = output_layer(out, config)
            linear = linear._replace(x=jnp.take_along_axis(linear.x, at[..., None], axis=1))
            completion = batch["completion"]
            targets = completion.reshape(-1, completion.shape[-1])
            pair = linear_log_probs_and_entropy(*linear, targets, options.temperature)
            of_tokens = lambda x: jnp.take_along_axis(x, at, axis=1)
            values = () if values is None else (of_tokens(values),)
            results = [x.reshape(completion.shape) for x in (*pair, *values)]
            return (*results, None)[:3]

        return forward

    def reference(frozen, batch):
        variables = frozen[REFERENCE]
        extras = {k: x for k, x in variables.items() if k != "params"}
        return forward_of(family.Model(c))(variables["params"], extras, batch)[0]

    return Policy(
        family,
        c,
        init,
        axes,
        model,
        options.updates * config.train.accumulate,
        forward_of(model),
        reference,
        _frozen(config, options, plain_init, plain_axes),
    )


def _frozen(config, options: Config, init, axes) -> dict[str, Frozen]:
    if not options.beta:
        return {}
    needed = f"task.beta={options.beta}"
    part = reference_part(config, options.reference, init, axes, needed, "or task.beta=0.")
    return {REFERENCE: part}


def rows_of(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(tokens int32 [B * G, T], each prompt with a completion right after it; at int32 [B * G, N],
    the places whose outputs predict the tokens of the completion)."""
    prompt, completion = batch["prompt"], batch["completion"]
    B, G, N = completion.shape
    T = prompt.shape[1] + N
    repeat = lambda x: jnp.broadcast_to(x[:, None], (B, G, *x.shape[1:])).reshape(-1, *x.shape[1:])
    lengths = repeat(batch["prompt_length"])[:, None]
    offset = jnp.arange(T) - lengths
    new = jnp.take_along_axis(completion.reshape(-1, N), jnp.clip(offset, 0, N - 1), axis=1)
    given = repeat(jnp.pad(prompt, ((0, 0), (0, N))))
    tokens = jnp.where(offset < 0, given, jnp.where(offset < N, new, 0))
    return tokens, lengths - 1 + jnp.arange(N)


def in_parts(function: Callable[[dict], Any], batch: dict, n: int) -> Any:
    """function(batch) of n micro-batches after each other, put together: arrays [B, ...]. Example r
    is in part r % n, as in train.step.micro_batches."""
    if n == 1 or len(batch["prompt"]) % n:
        return function(batch)
    split = lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1)
    out = jax.lax.map(function, jax.tree_util.tree_map(split, batch))
    return jax.tree_util.tree_map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)


def learned_mask(batch: Mapping[str, jax.Array], options: Config) -> jax.Array:
    """mask, without completions that were cut off, if task.mask_truncated."""
    mask = batch["mask"]
    return mask * batch["ended"][..., None] if options.mask_truncated else mask


def total_reward(batch: Mapping[str, jax.Array], options: Config) -> jax.Array:
    """The weighted sum of the rewards [B, G], less the penalty of task.overlong_tokens (the soft
    one of DAPO, https://arxiv.org/abs/2503.14476)."""
    weights = jnp.array([reward.weight for reward in options.rewards.values()])
    total = (batch["rewards"] * weights).sum(-1)
    if n := options.overlong_tokens:
        over = batch["mask"].sum(-1) - (options.max_new_tokens - n)
        total = total - jnp.clip(over / n, 0, 1)
    return total


def rollout_metrics(batch: Mapping[str, jax.Array], options: Config) -> dict:
    """{metric: (sum, weight)} of the completions of a batch."""
    rewards, reward = batch["rewards"], total_reward(batch, options)
    B, G = reward.shape
    completions, prompts = jnp.float32(B * G), jnp.float32(B)
    out = {
        "reward": (reward.sum(), completions),
        "completion_tokens": (batch["mask"].sum(), completions),
        "truncated": ((1 - batch["ended"]).sum(), completions),
    }
    if G > 1:
        out["reward_std"] = policy.group_std(reward).sum(), prompts
        equal = policy.equal_groups(reward)
        out["equal_groups"] = equal.astype(jnp.float32).sum(), prompts
    for i, name in enumerate(options.rewards):
        out[f"rewards/{name}"] = rewards[..., i].sum(), completions
    return out


def policy_loss(
    batch: Mapping[str, jax.Array],
    log_p: jax.Array,
    advantages: jax.Array,
    options: Config,
    level: str = "token",
) -> tuple[jax.Array, dict]:
    """(the clipped loss of each token [B, G, N], {metric: (sum, weight)}).

    advantages: [B, G, N or 1]. Without old_log_probs in the batch the policy is the one that
    sampled it, and all ratios are 1.
    """
    mask = learned_mask(batch, options)
    old = batch.get("old_log_probs", jax.lax.stop_gradient(log_p))
    ratio = policy.log_ratio(log_p, old, mask, level)
    loss, is_clipped = policy.clipped(ratio, advantages, options.clip_low, options.clip_high)
    loss = jnp.broadcast_to(loss, mask.shape)
    if options.sampler_cap:
        loss = loss * policy.sampler_weights(old, batch["sampler_log_probs"], options.sampler_cap)
    tokens = mask.sum()
    gap = jnp.abs(jax.lax.stop_gradient(old) - batch["sampler_log_probs"])
    return loss, {
        "clipped": ((is_clipped * mask).sum(), tokens),
        "sampler_gap": ((gap * mask).sum(), tokens),
    }


def build_task(config, options: Config, p: Policy, loss: Callable, whole_batch: Callable) -> Task:
    """The Task of a policy. loss(params, extras, frozen, batch) -> ((sum, weight), metrics), of a
    batch that whole_batch(params, extras, frozen, batch) has completed."""
    source = data_module(config, "load_prompts", "prompts")
    seq_len, N, G = config.data.seq_len, options.max_new_tokens, options.samples
    rollouts = Rollouts(G, N, options.temperature, options.rewards, options.show_every)

    def complete(params, extras, frozen, batch):
        if "advantages" in batch:
            return batch
        if "completion" not in batch:
            raise UserError(
                f"The loss of task.name={config.task.name!r} needs completions, which are sampled "
                "in training alone. Evaluate with kind='generation', which compares with the right "
                "answers, or with kind='sample'."
            )
        return jax.lax.stop_gradient(whole_batch(params, extras, frozen, batch))

    def loss_of_batch(params, extras, frozen, batch, rng, train):
        del rng, train  # without dropout: ratios compare the same computation
        batch = complete(params, extras, frozen, batch)
        sums, metrics = loss(params, extras, frozen, batch)
        return sums, ({**rollout_metrics(batch, options), **metrics}, extras)

    def load_data(log=print, tokenizer=None, splits=None):
        corpus = source.load_prompts(
            config.data,
            prompt_len=seq_len - N,
            tokenizer=tokenizer,
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
            template=options.chat_template,
        )
        check_vocabulary(corpus.tokenizer.vocab_size, p.config.vocab_size)
        return corpus

    def batch_shapes(batch_size, step):
        del step
        one = (batch_size,)
        integers, floats = rollouts.shapes(batch_size)
        prompts = {"prompt": (batch_size, seq_len - N), "prompt_length": one, "example": one}
        return array_shapes({**prompts, **integers}, floats)

    # Of the step alone, without the sampler; a pass forward is a third of training.
    passes = options.epochs + (bool(options.beta) + (options.updates * options.epochs > 1)) / 3
    flops = passes * G * seq_len * flops_per_token(p.family, p.config, seq_len)
    return Task(
        init=p.init,
        axes=p.axes,
        loss=loss_of_batch,
        whole_batch=complete,
        load_data=load_data,
        batch_shapes=batch_shapes,
        model=p.model,
        model_config=p.config,
        frozen=p.frozen,
        rollouts=rollouts,
        updates=options.updates,
        epochs=options.epochs,
        unit="completions",
        units_per_example=G,
        attention_lengths={"data.seq_len": seq_len},
        flops_per_example=flops,
    )
