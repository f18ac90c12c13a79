"""How `bigjax headline` writes."""

import dataclasses
import math

from bigjax.bounds import check_seed
from bigjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """How to write headlines and which to choose. UserError for a number out of range."""

    number: int = 5
    beam: int = 8
    temperature: float = 0.0
    top_p: float = 0.95
    clicks: str = ""
    real_weight: float = 1.0
    click_weight: float = 0.0
    seed: int = 0

    HELP = {
        "number": "headlines an article",
        "beam": "how many the search keeps at each token",
        "temperature": "above 0: samples instead of the search",
        "top_p": "of samples: from the likeliest tokens that have this probability",
        "clicks": "how often readers shall click: high or low",
        "real_weight": "in the ranking, of the probability of being real",
        "click_weight": "in the ranking, of the predicted quantile of clicks",
        "seed": "of samples",
    }

    def __post_init__(self):
        search = self.temperature == 0
        for name, ok, want in (
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
                raise UserError(f"--{name} is {getattr(self, name)!r}; it must be {want}.")
        check_seed(self.seed)
