"""Rollouts: what a model writes in training, which is then rewarded."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from bigjax.bounds import FINITE
from bigjax.errors import UserError

_KINDS = ("function", "run")
_READS = ("completion", "text")
_OUTPUTS = ("probability", "logit")


@dataclasses.dataclass(frozen=True)
class Reward:
    """An entry of task.rewards."""

    kind: str  # function (of your own), run (a reward model or a classifier trained here)
    path: str  # my_module:function, or the run's work folder
    weight: float = 1.0  # in the sum of all rewards
    label: str = ""  # of a classifier: the label whose probability is the reward
    output: str = "probability"  # of a classifier: probability, logit (log-odds of the label)
    reads: str = "completion"  # of a classifier: completion, text (the prompt and its completion)

    RANGES = {"weight": FINITE}

    def __post_init__(self):
        for key, allowed in (("kind", _KINDS), ("output", _OUTPUTS), ("reads", _READS)):
            if getattr(self, key) not in allowed:
                raise UserError(
                    f"{key} of a reward in config.task.rewards is {getattr(self, key)!r}; allowed: "
                    f"{', '.join(allowed)}."
                )
        if self.kind == "function" and self.path.count(":") != 1:
            raise UserError(
                f"path of a reward in config.task.rewards is {self.path!r}; with kind='function' "
                "it names a function as 'my_module:function'."
            )


class Rollouts(NamedTuple):
    """How training completes a batch of prompts before a step (train/rollouts.py).

    samples: completions of each prompt, G. max_new_tokens: of a completion, N. temperature: of the
    sampling. rewards: {name: Reward}, R of them. show_every: steps between the lines of
    samples.jsonl; 0 = none.

    The batch of a step is that of the data, with prompt int32 [B, S], prompt_length and example
    int32 [B], and the arrays of `shapes`: completion int32 [B, G, N], with its end token, then
    padding; mask float32 [B, G, N], 1 on its tokens; ended float32 [B, G], 0 if it has no end
    token; sampler_log_probs float32 [B, G, N], those of the tokens when they were sampled; rewards
    float32 [B, G, R].

    The data have end_ids, the ids that end a completion, and rows(name) as data.prompts has.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    rewards: Mapping[str, Reward]
    show_every: int = 0

    def shapes(self, batch_size: int) -> tuple[dict, dict]:
        """({integer array: shape}, {float32 array: shape}) that rollouts add to a batch."""
        tokens = (batch_size, self.samples, self.max_new_tokens)
        rewards = (batch_size, self.samples, len(self.rewards))
        floats = {"mask": tokens, "sampler_log_probs": tokens, "rewards": rewards}
        floats["ended"] = tokens[:2]
        return {"completion": tokens}, floats
