"""The options of `bigjax headline`, importable without jax."""

import dataclasses
import math

from bigjax.bounds import check_seed
from bigjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How to write headlines and how to rank them. Raises UserError for a value out of range."""

    number: int = 5
    beam: int = 8
    temperature: float = 0.0
    top_p: float = 0.95
    clicks: str = ""
    real_weight: float = 1.0
    click_weight: float = 0.0
    seed: int = 0

    HELP = {
        "number": "headlines per article",
        "beam": "width of the beam search",
        "temperature": "above 0: samples instead of beam search",
        "top_p": "for samples: only the likeliest tokens that together have this probability",
        "clicks": "the desired click rate: high or low",
        "real_weight": "weight of the probability of being real in the ranking",
        "click_weight": "weight of the predicted quantile of clicks in the ranking",
        "seed": "for samples",
    }

    def __post_init__(self):
        search = self.temperature == 0
        for name, ok, allowed in (
            ("number", self.number >= 1, "at least 1"),
            (
                "beam",
                not search or self.beam >= self.number,
                f"at least --number={self.number}, or --temperature above 0",
            ),
            ("temperature", 0 <= self.temperature < math.inf, "0 (beam search) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("clicks", self.clicks in ("", "high", "low"), "high, low, or left out"),
            ("real_weight", 0 <= self.real_weight < math.inf, "0 or more"),
            ("click_weight", 0 <= self.click_weight < math.inf, "0 or more"),
        ):
            if not ok:
                raise UserError(f"--{name} is {getattr(self, name)!r}; it must be {allowed}.")
        check_seed(self.seed)
