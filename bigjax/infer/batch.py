"""Beam search for many inputs, in batches of similar lengths."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from bigjax.bounds import FINITE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.infer import beam_search
from bigjax.infer.generate import padded_rows, slots_for
from bigjax.models import Decoder, rung


@dataclasses.dataclass(frozen=True)
class Search:
    """Options of a beam search, see beam_search.beam_search."""

    width: int = 1  # beams; 1 is greedy decoding
    n_best: int = 1  # of the `width` texts that it finds
    length_penalty: float = 1.0  # above 0: longer texts; 0: the sum of the log-probabilities
    coverage_penalty: float = 0.0  # above 0: texts that attend to all of the source

    RANGES = {
        "width": at_least(1),
        "n_best": at_least(1),
        "length_penalty": FINITE,
        "coverage_penalty": at_least(0),
    }

    def __post_init__(self):
        check_ranges("search", self)
        if self.n_best > self.width:
            raise UserError(
                f"n_best is {self.n_best}, but a search with {self.width} beams finds "
                f"{self.width} texts. Lower n_best, or raise the number of beams."
            )


class Text(NamedTuple):
    """ids: of a generated text, without its end token. score: see beam_search.beam_search."""

    ids: list[int]
    score: float


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The indices of inputs of these lengths in batches of similar ones, the longest first, so that
    one that does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def search(
    decoder: Decoder,
    variables: Any,
    inputs: Sequence[Sequence],
    n: int,
    options: Search,
    *,
    end_id: int,
    pad_id: int,
    names: Sequence[str] = (),
    run=beam_search.search,
) -> list[list[Text]]:
    """The n_best texts of up to n tokens for each input, best first; fewer if fewer were found.

    inputs: what decoder.context accepts. names: of the inputs, for messages. run:
    beam_search.search, or the same function compiled otherwise. Raises UserError for options that
    the decoder does not support, and for an input without any text.
    """
    check(decoder, options)
    context, first = decoder.context(padded_rows(inputs))
    tokens, scores = jax.device_get(
        run(
            decoder,
            variables,
            context,
            first,
            width=options.width,
            size=rung(n),
            n=n,
            end_id=end_id,
            pad_id=pad_id,
            slots=slots_for(decoder, inputs, n),
            length_penalty=float(options.length_penalty),
            coverage_penalty=float(options.coverage_penalty),
        )
    )
    results = []
    for i, (row, score) in enumerate(zip(tokens[: len(inputs), : options.n_best], scores)):
        results.append(
            [
                Text(_before(t[:n], end_id), float(s))
                for t, s in zip(row, score)
                if s > beam_search.NEVER
            ]
        )
        if not results[-1]:
            raise UserError(
                f"{names[i] if names else f'input {i + 1}'}: no text was found: the model's logits "
                "are not finite. Use another checkpoint, such as an earlier one."
            )
    return results


def check(decoder: Decoder, options: Search) -> None:
    """Raises UserError for options that the decoder does not support."""
    if options.coverage_penalty and decoder.attention is None:
        raise UserError(
            f"coverage_penalty is {options.coverage_penalty:g}, but this model has no attention to "
            "a source. Set it to 0."
        )


def _before(tokens: np.ndarray, end_id: int) -> list[int]:
    """The tokens before the end token."""
    ids = tokens.tolist()
    return ids[: ids.index(end_id)] if end_id in ids else ids
