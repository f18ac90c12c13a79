"""Learn from preferences: pairs of answers (DPO and its kin), or rated answers (KTO)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.bounds import POSITIVE, Range, at_least, check_ranges
from bigjax.data.store import SPLITS
from bigjax.errors import UserError
from bigjax.layers.output import linear_log_probs
from bigjax.losses import preference as losses
from bigjax.losses.preference import Answers
from bigjax.tasks import (
    Task,
    apply,
    array_shapes,
    check_call,
    check_vocabulary,
    data_module,
    family_for,
    flops_per_token,
    in_tokens,
    init_and_axes,
    output_layer,
)
from bigjax.tasks._chat import resolve as resolve
from bigjax.tasks._peft import REFERENCE
from bigjax.tasks._reference import reference_part

DATA, EVALUATION = "preferences", "loss"  # in a config that is generated for this task
STORED = "data"  # the value of task.reference for log-probabilities of the data

_SMOOTHED = ("sigmoid", "robust", "simpo")
# Options that only some losses use.
USED_BY = {
    "label_smoothing": _SMOOTHED,
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "nll_weight": ("sigmoid", "robust", "ipo", "hinge", "simpo"),
    "reference": ("sigmoid", "robust", "ipo", "hinge", "kto"),
}
LOSSES = ("sigmoid", "robust", "ipo", "hinge", "orpo", "simpo", "kto")


@dataclasses.dataclass(frozen=True)
class Config:
    loss: str = "sigmoid"  # sigmoid (DPO), robust, ipo, hinge, orpo, simpo; kto, of ratings
    beta: float = 0.1  # what rewards are multiplied by; of ipo tau, of orpo lambda
    label_smoothing: float = 0.0  # the share of wrong pairs; of sigmoid, robust and simpo
    gamma: float = 0.5  # the margin of simpo
    desirable_weight: float = 1.0  # of kto
    undesirable_weight: float = 1.0  # of kto
    nll_weight: float = 0.0  # of the chosen answers' mean nll per token, added to the loss
    # A run's or a Hugging Face folder; data: log-probabilities of the data's columns; '': the base
    # of config.peft, or init_from
    reference: str = ""
    # The content of the file data.chat_template; a run fills it in, so that it holds all of itself
    chat_template: str = ""

    RANGES = {
        "beta": POSITIVE,
        "label_smoothing": Range(0, 0.5, open_high=True),
        "gamma": at_least(0),
        "desirable_weight": at_least(0),
        "undesirable_weight": at_least(0),
        "nll_weight": at_least(0),
    }
    MAY_CHANGE = ("beta", "label_smoothing", "gamma", "*_weight", "reference")
    PATHS = ("reference",)

    def __post_init__(self):
        check_ranges("task", self)
        if self.loss not in LOSSES:
            raise UserError(f"task.loss is {self.loss!r}; allowed: {', '.join(LOSSES)}.")
        for field in dataclasses.fields(self):
            value, users = getattr(self, field.name), USED_BY.get(field.name, LOSSES)
            if value != field.default and self.loss not in users:
                raise UserError(
                    f"task.{field.name} is {value!r}, but task.loss={self.loss!r} does not use it; "
                    f"{', '.join(users)} {'does' if len(users) == 1 else 'do'}. Leave it at "
                    f"{field.default!r}, or choose another loss."
                )

    @property
    def form(self) -> str:
        """Of the data."""
        return "ratings" if self.loss == "kto" else "pairs"

    @property
    def has_reference(self) -> bool:
        return self.loss in USED_BY["reference"]


def build(config, options: Config) -> Task:
    """Batches: see data.preferences.PreferenceBatches.

    The loss is the mean over pairs, or ratings. `outputs` gives the log-probabilities of answers,
    float32 [B, 2] of pairs, and of ratings those of the answer and of that to another prompt.
    """
    family, c = family_for(
        config,
        "a family that defines Model and decoder, such as model.name='gpt'",
        needs=("Model", "decoder"),
    )
    model = family.Model(c)
    check_call(
        model.__call__,
        "tokens, positions, segments, rng=rng",
        f"config.model.name={config.model.name!r}: Model.__call__",
    )
    init, axes = init_and_axes(family.Model, c)
    frozen = {}
    if options.has_reference and options.reference != STORED:
        what = f"task.loss={options.loss!r}"
        others = (
            "or to 'data' if the data have its log-probabilities (`bigjax score`); or choose "
            "task.loss='orpo' or 'simpo', which need none."
        )
        frozen[REFERENCE] = reference_part(config, options.reference, init, axes, what, others)
    scorer = _Scorer(config, model)
    kind = _Ratings if options.form == "ratings" else _Pairs
    objective = kind(config, options, scorer, REFERENCE in frozen)
    source = data_module(config, "load_preferences", "preferences")

    def load_data(log=print, tokenizer=None, splits=None):
        corpus = source.load_preferences(
            config.data,
            options.form,
            with_reference=options.reference == STORED,
            tokenizer=tokenizer,
            log=log,
            names=splits or SPLITS,
            python_path=config.python_path,
            template=options.chat_template,
        )
        check_vocabulary(corpus.tokenizer.vocab_size, c.vocab_size)
        return corpus

    T = config.data.seq_len
    rows = 2 if options.form == "pairs" else 1
    return Task(
        init=init,
        axes=axes,
        loss=objective.loss,
        load_data=load_data,
        batch_shapes=objective.batch_shapes,
        whole_batch=objective.whole_batch,
        outputs=objective.outputs,
        frozen=frozen,
        model=model,
        model_config=c,
        flops_per_example=T * flops_per_token(family, c, T) * objective.passes,
        **{**in_tokens(T), "units_per_example": rows * T},
    )


class _Scorer:
    """Log-probabilities of answers by a model."""

    def __init__(self, config, model) -> None:
        self._config, self._model = config, model

    def token_log_probs(
        self, variables: Any, inputs, targets, rng=None, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """(of each target [..., T] in nats, extras). variables: {'params': ..., and extras}."""
        rows = lambda x: x.reshape(-1, x.shape[-1])
        extras = {k: x for k, x in variables.items() if k != "params"}
        out, extras = apply(
            *(self._model, variables["params"], extras, train, rows(inputs)),
            rng=rng if train else None,
        )
        linear = output_layer(out, self._config)
        return linear_log_probs(*linear, rows(targets)).reshape(targets.shape), extras

    def log_probs(self, variables: Any, batch: dict, prefix: str = "") -> jax.Array:
        """Of each answer [...], without a gradient and without dropout."""
        inputs, targets, weights = (batch[prefix + k] for k in ("inputs", "targets", "weights"))
        logp, _ = self.token_log_probs(jax.lax.stop_gradient(variables), inputs, targets)
        return (logp * weights).sum(-1)


class _Objective:
    """What the losses of pairs and of ratings share. passes: how often a step computes each row of
    its batch, in units of a forward and a backward pass."""

    def __init__(self, config, options: Config, scorer: _Scorer, has_model: bool) -> None:
        """has_model: whether the reference is a model, a frozen part."""
        self.config, self.options, self.scorer = config, options, scorer
        self.has_model = has_model

    def answers(self, params, extras, frozen, batch, rng, train):
        """(log-probability of each target [..., T], Answers [...], extras)."""
        variables = {"params": params, **extras}
        logp, extras = self.scorer.token_log_probs(
            variables, batch["inputs"], batch["targets"], rng, train
        )
        weights = batch["weights"]
        reference = self.reference(frozen, batch) if self.options.has_reference else None
        return logp, Answers((logp * weights).sum(-1), weights.sum(-1), reference), extras

    def reference(self, frozen, batch, prefix: str = "") -> jax.Array:
        if not self.has_model:
            return batch[f"{prefix}reference"]
        return self.scorer.log_probs(frozen[REFERENCE], batch, prefix)


class _Pairs(_Objective):
    @property
    def passes(self) -> float:
        return 2 * (1 + self.has_model / 3)

    def loss(self, params, extras, frozen, batch, rng, train):
        o = self.options
        batch = self.whole_batch(params, extras, frozen, batch)
        logp, answers, extras = self.answers(params, extras, frozen, batch, rng, train)
        chosen, rejected = (jax.tree_util.tree_map(lambda x: x[:, i], answers) for i in (0, 1))
        real = (answers.n.min(-1) > 0).astype(jnp.float32)
        total = (_PAIR_LOSSES[o.loss](chosen, rejected, o) * real).sum()
        nll_weight = 1.0 if o.loss == "orpo" else o.nll_weight
        if nll_weight:
            nll = -(logp[:, 0] * self._nll_targets(batch)).sum(-1)
            total = total + nll_weight * (nll * batch["nll_scale"]).sum()
        own = answers.ratio if o.has_reference else answers.mean
        rewards = jax.lax.stop_gradient(o.beta * own)
        margin = rewards[:, 0] - rewards[:, 1]
        mean = lambda x: ((x * real).sum(), real.sum())
        metrics = {
            "accuracy": mean((margin > 0).astype(jnp.float32)),
            "margin": mean(margin),
            "reward_chosen": mean(rewards[:, 0]),
            "reward_rejected": mean(rewards[:, 1]),
            "nll": (-chosen.log_probs.sum(), chosen.n.sum()),
        }
        return (total, real.sum()), (metrics, extras)

    def _nll_targets(self, batch) -> jax.Array:
        """float32 [B, T]: which targets of the chosen answers have an nll in the loss. ORPO also
        learns the prompts, as its authors' code does."""
        if self.options.loss != "orpo":
            return batch["weights"][:, 0]
        T = self.config.data.seq_len
        return (jnp.arange(T) < batch["lengths"][:, :1] - 1).astype(jnp.float32)

    def whole_batch(self, params, extras, frozen, batch):
        """With nll_scale [B], pairs per token of the nll: the loss is kept in units of pairs."""
        del params, extras, frozen
        if "nll_scale" in batch:
            return batch
        n = (batch["weights"].sum(-1).min(-1) > 0).sum().astype(jnp.float32)
        scale = n / jnp.maximum(self._nll_targets(batch).sum(), 1)
        return {**batch, "nll_scale": jnp.broadcast_to(scale, batch["margin"].shape)}

    def outputs(self, params, extras, frozen, batch):
        del frozen
        return self.scorer.log_probs({"params": params, **extras}, batch)

    def batch_shapes(self, batch_size, step):
        del step
        pair = (batch_size, 2)
        row = (*pair, self.config.data.seq_len)
        stored = {"reference": pair} if self.options.reference == STORED else {}
        return array_shapes(
            {"inputs": row, "targets": row, "lengths": pair},
            {"weights": row, "margin": pair[:1], **stored},
        )


_PAIR_LOSSES: dict[str, Callable[[Answers, Answers, Config], jax.Array]] = {
    "sigmoid": lambda a, b, o: losses.sigmoid(a, b, o.beta, o.label_smoothing),
    "robust": lambda a, b, o: losses.robust(a, b, o.beta, o.label_smoothing),
    "ipo": lambda a, b, o: losses.ipo(a, b, o.beta),
    "hinge": lambda a, b, o: losses.hinge(a, b, o.beta),
    "orpo": lambda a, b, o: losses.orpo(a, b, o.beta),
    "simpo": lambda a, b, o: losses.simpo(a, b, o.beta, o.gamma, o.label_smoothing),
}


class _Ratings(_Objective):
    @property
    def passes(self) -> float:
        return 1 + 1 / 3 + self.has_model * 2 / 3

    def loss(self, params, extras, frozen, batch, rng, train):
        o = self.options
        batch = jax.lax.stop_gradient(self.whole_batch(params, extras, frozen, batch))
        _, answers, extras = self.answers(params, extras, frozen, batch, rng, train)
        desirable = batch["label"] > 0
        real = (answers.n > 0).astype(jnp.float32)
        weight = jnp.where(desirable, o.desirable_weight, o.undesirable_weight)
        values = losses.kto(answers, desirable, batch["kl"], o.beta)
        rewards = jax.lax.stop_gradient(o.beta * answers.ratio)
        right = (rewards > o.beta * batch["kl"]) == desirable
        mean = lambda x, of: ((x * of).sum(), of.sum())
        chosen, rejected = real * desirable, real * ~desirable
        metrics = {
            "accuracy": mean(right.astype(jnp.float32), real),
            "kl": mean(batch["kl"], real),
            "reward_chosen": mean(rewards, chosen),
            "reward_rejected": mean(rewards, rejected),
            "nll": (-(answers.log_probs * chosen).sum(), (answers.n * chosen).sum()),
        }
        return ((values * weight * real).sum(), real.sum()), (metrics, extras)

    def whole_batch(self, params, extras, frozen, batch):
        """With kl [B], the mean of log(policy / reference) of answers to other prompts, at least 0.

        It is computed train.accumulate parts of the batch at a time, as the gradients are.
        """
        if "kl" in batch:
            return batch
        variables, size = {"params": params, **extras}, batch["label"].shape[0]
        n = self.config.train.accumulate if size % self.config.train.accumulate == 0 else 1

        def sums(part):
            ratio = self.scorer.log_probs(variables, part, "kl_")
            ratio -= self.reference(frozen, part, "kl_")
            real = (part["kl_weights"].sum(-1) > 0).astype(jnp.float32)
            return (ratio * real).sum(), real.sum()

        own = {k: x for k, x in batch.items() if k.startswith("kl_")}
        if n == 1:
            total, weight = sums(own)
        else:
            split = lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1)
            parts = jax.lax.map(sums, jax.tree_util.tree_map(split, own))
            total, weight = (x.sum() for x in parts)
        kl = jax.lax.stop_gradient(jnp.maximum(total / jnp.maximum(weight, 1), 0))
        return {**batch, "kl": jnp.broadcast_to(kl, (size,))}

    def outputs(self, params, extras, frozen, batch):
        del frozen
        variables = {"params": params, **extras}
        both = [self.scorer.log_probs(variables, batch, prefix) for prefix in ("", "kl_")]
        return jnp.stack(both, axis=1)

    def batch_shapes(self, batch_size, step):
        del step
        one = (batch_size,)
        row = (*one, self.config.data.seq_len)
        names = ("reference", "kl_reference") if self.options.reference == STORED else ()
        tokens = [f"{prefix}{name}" for prefix in ("", "kl_") for name in ("inputs", "targets")]
        return array_shapes(
            {**dict.fromkeys(tokens, row), "label": one},
            {"weights": row, "kl_weights": row, **dict.fromkeys(names, one)},
        )
