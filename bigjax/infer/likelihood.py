"""Log-likelihoods of continuations of texts, in batches, with any decoder that continues texts.

As lm-evaluation-harness computes them: a context and its continuation are encoded together, and
rows that are longer than the model are truncated at their beginning.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.infer.batch import by_length
from bigjax.infer.generate import Generator
from bigjax.layers.output import linear_log_probs_and_hits
from bigjax.models import Decoder, rung
from bigjax.parallel import sharding
from bigjax.parallel.mesh import BATCH_AXES

Parts = Sequence[str | int]  # texts, and the ids of special tokens between them


class Pair(NamedTuple):
    """Token ids: of a context, one or more, and of its continuation, one or more."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """log_p: of a continuation, in nats. greedy: whether each of its tokens is the most likely."""

    log_p: float
    greedy: bool


def lead(tokenizer: Any) -> list[int]:
    """The token ids of an empty context."""
    return [*tokenizer.leading_ids] or [tokenizer.bos_id]


def pairs(tokenizer: Any, texts: Sequence[tuple[Parts, str]]) -> list[Pair]:
    """Contexts and continuations as token ids, after the tokenizer's leading_ids.

    White space at the end of a context is part of the continuation. Its tokens are those of both
    together after as many as the context has by itself. An empty context is `lead`.
    """
    contexts, wholes = [], []
    for parts, continuation in texts:
        *before, last = [*parts] or [""]
        if not isinstance(last, str):
            before, last = [*parts], ""
        text = last.rstrip()
        contexts.append((*before, text))
        wholes.append((*before, last + continuation))
    first = [*dict.fromkeys(contexts)]
    ids_of = dict(zip(first, _encoded(tokenizer, first)))
    out = []
    for context, whole in zip(contexts, _encoded(tokenizer, wholes)):
        n = min(len(ids_of[context]), len(whole) - 1)  # no less than one token is the continuation
        ids = [*tokenizer.leading_ids] + whole
        n += len(tokenizer.leading_ids)
        out.append(Pair(ids[:n] or [tokenizer.bos_id], ids[n:]))
    return out


def prompts(tokenizer: Any, rows: Sequence[Parts]) -> list[list[int]]:
    """Contexts as token ids, after the tokenizer's leading_ids; an empty one is `lead`."""
    encoded = _encoded(tokenizer, rows)
    return [[*tokenizer.leading_ids, *ids] or [tokenizer.bos_id] for ids in encoded]


def _encoded(tokenizer: Any, rows: Sequence[Parts]) -> list[list[int]]:
    """The token ids of each row without leading_ids."""
    rows = [tuple(part for part in row if part != "") for row in rows]
    n = len(tokenizer.leading_ids)
    out = []
    for ids, _ in tokenizer.encode_parts(rows, [()] * len(rows)):
        row_ids = ids.tolist()
        out.append(
            row_ids[n:] if n and tuple(row_ids[:n]) == tuple(tokenizer.leading_ids) else row_ids
        )
    return out


def rolling(tokenizer: Any, text: str, max_len: int) -> list[Pair]:
    """All tokens of a text as continuations: in windows of at most max_len inputs, each token once,
    the first after one leading token, the others after as many as there is room for."""
    ids = tokenizer.encode(text).tolist()
    first = lead(tokenizer)[-1:]
    windows = [Pair(first, ids[:max_len])] if ids else []
    for at in range(max_len, len(ids), max_len):
        end = min(at + max_len, len(ids))
        start = end - max_len - 1  # max_len inputs, whose last one predicts the last token
        windows.append(Pair(ids[start:at], ids[at:end]))
    return windows


class Scorer:
    """Computes log-likelihoods with the model of a Generator, whose weights it shares."""

    def __init__(self, generator: Generator, mesh: Any, batch_size: int) -> None:
        """batch_size: rows at a time, rounded up to what the mesh needs.

        Raises UserError for a decoder that cannot score rows.
        """
        decoder = generator.decoder
        if decoder.score is None or not decoder.continues:
            raise UserError(
                "The log-likelihood of a text needs a decoder with `score` that continues texts, "
                "such as that of model.name='gpt'. A family of your own gives it to its "
                "models.Decoder."
            )
        self.decoder, self._variables, self._mesh = decoder, generator.variables, mesh
        ways = sharding.size_of(mesh, BATCH_AXES)
        self._batch_size = -(-batch_size // ways) * ways

    def is_truncated(self, pair: Pair) -> bool:
        """Whether the context does not fit in the model with the continuation."""
        return len(pair.context) + len(pair.continuation) > self.decoder.max_len + 1

    def __call__(
        self, rows: Sequence[Pair], names: Sequence[str], done: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """The likelihood of each continuation. names: of the rows, for messages. done(n) is called
        after n more rows.

        Raises UserError for a continuation of more than max_len tokens, before any is computed,
        and for one whose log-likelihood is not finite.
        """
        limit = self.decoder.max_len
        for pair, name in zip(rows, names):
            if len(pair.continuation) > limit:
                raise UserError(
                    f"{name}: a continuation has {len(pair.continuation):,} tokens; at most "
                    f"{limit:,} are allowed with {self.decoder.limit}={limit}. Shorten it."
                )
        results: list[Likelihood] = [Likelihood(0.0, False)] * len(rows)
        for indices, out in self._batches(rows):
            for i, log_p, greedy in zip(indices, *out):
                if not np.isfinite(log_p):
                    raise UserError(
                        f"{names[i]}: the model's log-likelihood is {float(log_p)}. Use another "
                        "checkpoint, such as an earlier one."
                    )
                results[i] = Likelihood(float(log_p), bool(greedy))
            if done:
                done(len(indices))
        return results

    def _batches(self, rows: Sequence[Pair]) -> Iterator[tuple[list[int], Any]]:
        """(indices of rows, (log-likelihoods, greedy) of them), the longest rows first."""
        limit = self.decoder.max_len
        cut = [([*r.context, *r.continuation][-limit - 1 :], len(r.continuation)) for r in rows]
        for indices in by_length([len(ids) for ids, _ in cut], self._batch_size):
            width = min(rung(len(cut[indices[0]][0]) - 1), limit)
            shape = (self._batch_size, width)
            batch = {name: np.zeros(shape, np.int32) for name in ("inputs", "targets")}
            batch["counted"] = np.zeros(shape, bool)
            for row, i in enumerate(indices):
                ids, n = cut[i]
                batch["inputs"][row, : len(ids) - 1] = ids[:-1]
                batch["targets"][row, : len(ids) - 1] = ids[1:]
                batch["counted"][row, len(ids) - 1 - n : len(ids) - 1] = True
            own = sharding.local_rows(self._mesh, self._batch_size)
            local = {name: x[own] for name, x in batch.items()}
            arrays = sharding.put_batch(self._mesh, local, own, self._batch_size)
            replicated = sharding.replicated(self._mesh)
            yield indices, jax.device_get(_score(self.decoder, replicated, self._variables, arrays))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(decoder: Decoder, replicated, variables, batch) -> tuple[jax.Array, jax.Array]:
    """([B] log-likelihoods of the counted targets, [B] whether each has the largest logit)."""
    assert decoder.score is not None
    linear = decoder.score(variables, batch["inputs"])
    log_p, hits = linear_log_probs_and_hits(*linear, batch["targets"])
    counted = batch["counted"]
    out = jnp.where(counted, log_p, 0.0).sum(-1), (hits | ~counted).all(-1)
    return jax.lax.with_sharding_constraint(out, replicated)
