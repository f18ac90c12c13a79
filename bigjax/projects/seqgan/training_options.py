"""The options of adversarial training, and the rounds that follow from them."""

import dataclasses

from bigjax.bounds import POSITIVE, SHARE, at_least, check_ranges
from bigjax.errors import UserError

PHASES = ("mle", "discriminator", "adversarial")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """A training step is a round of many updates: first `mle_rounds` of maximum likelihood for the
    generator, then `discriminator_rounds`, then adversarial rounds up to train.steps.
    """

    mle_rounds: int = 20
    mle_updates: int = 157  # per MLE round
    discriminator_rounds: int = 1
    pretrain_updates: int = 157  # per discriminator round
    generator_updates: int = 1  # per adversarial round, before the discriminator's
    discriminator_updates: int = 16  # per adversarial round
    negatives: int = 0  # generated batches per round of the discriminator; 0 = new for each update

    adversarial_learning_rate: float = 1e-2  # of the generator, constant
    discriminator_learning_rate: float = 1e-4  # constant
    discriminator_l2: float = 0.2  # weight of half the sum of squares of its last layer
    scheduled_sampling: float = 0.0  # share of own tokens among the inputs in the last MLE round

    reward: str = "probability"  # of being real; log_odds; constant (no discriminator)
    rollouts: int = 16  # continuations of each prefix; 0: each token gets the reward of its text
    rollout_rate: float = 0.8  # weight of the old rollout policy in the next one
    baseline: str = "none"  # none; batch: the mean reward at each position
    standardize: bool = False  # scale the rewards of a batch to a standard deviation of 1
    entropy: float = 0.0  # weight of the entropy bonus
    teacher_forcing: float = 0.0  # weight of maximum likelihood in adversarial updates
    # With q the generator after MLE, the reward of a text x has two more terms. With log_odds,
    # kl=1 and at most the batch baseline, the optimal generator is proportional to
    # q(x)^(1 + likelihood) * odds(x): it sharpens complete texts, where a temperature sharpens
    # each word.
    likelihood: float = 0.0  # weight of log q(x)
    kl: float = 0.0  # weight of log q(x) - log p(x), p the generator itself

    MAY_CHANGE = (
        *("negatives", "*_learning_rate", "discriminator_l2", "scheduled_sampling", "rollout*"),
        *("baseline", "standardize", "entropy", "teacher_forcing", "likelihood", "kl"),
    )
    RANGES = {
        **dict.fromkeys(("mle_updates", "pretrain_updates", "generator_updates"), at_least(1)),
        **dict.fromkeys(("mle_rounds", "discriminator_rounds", "negatives"), at_least(0)),
        **dict.fromkeys(("discriminator_updates", "rollouts", "discriminator_l2"), at_least(0)),
        **dict.fromkeys(("entropy", "teacher_forcing", "likelihood", "kl"), at_least(0)),
        **dict.fromkeys(("adversarial_learning_rate", "discriminator_learning_rate"), POSITIVE),
        **dict.fromkeys(("scheduled_sampling", "rollout_rate"), SHARE),
    }

    def __post_init__(self):
        check_ranges("task", self)
        for name, allowed in (
            ("reward", ("probability", "log_odds", "constant")),
            ("baseline", ("none", "batch")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"task.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}."
                )

        others = (self.likelihood, self.kl, self.entropy, self.teacher_forcing)
        if self.constant and self.baseline == "batch" and not any(others):
            raise UserError(
                "task.reward='constant' minus task.baseline='batch' is 0 everywhere: "
                "set task.baseline='none', or one of likelihood, kl, entropy and "
                "teacher_forcing."
            )

    @property
    def constant(self) -> bool:
        """Whether there is no discriminator: the control, where every reward is 1/2."""
        return self.reward == "constant"

    def describe(self, steps: int) -> str:
        """The number of rounds of each phase, as text."""
        return ", ".join(f"{rounds} {phase}" for phase, _, rounds in self.phases(steps))

    def phases(self, steps: int) -> list[tuple[str, int, int]]:
        """(phase, first round, number of rounds) for a run of `steps` rounds."""
        phases, first = [], 0
        for phase, rounds, _ in self._schedule():
            n = min(steps - first, steps if rounds is None else rounds)
            if n > 0:
                phases.append((phase, first, n))
            first += n
        return phases

    def round(self, step: int) -> tuple[str, int, int]:
        """(phase, batches of real text in this round, batches in all rounds before it).

        An update of the discriminator uses half a batch of real text.
        """
        before = 0
        for phase, rounds, batches in self._schedule():
            if rounds is None or step < rounds:
                return phase, batches, before + step * batches
            step, before = step - rounds, before + rounds * batches

    def _schedule(self) -> list[tuple[str, int | None, int]]:
        """(phase, number of rounds, batches of real text per round); None: all remaining rounds."""
        d = 0 if self.constant else 1
        of_phase = (
            (self.mle_rounds, self.mle_updates),
            (self.discriminator_rounds * d, -(-self.pretrain_updates // 2)),
            (None, self.generator_updates + d * -(-self.discriminator_updates // 2)),
        )
        return [(phase, *counts) for phase, counts in zip(PHASES, of_phase)]
