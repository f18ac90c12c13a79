"""Multi-head attention: self-attention with rotary positions and a cache, and cross-attention.
layers/mask.py defines which keys a query sees."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Norm
from bigjax.layers.kernels import attend, weights
from bigjax.layers.mask import Causal, Mask, dense, is_causal
from bigjax.layers.remat import kept
from bigjax.layers.rotary import Scaling, rotary
from bigjax.parallel.sharding import constrain


class Cache(NamedTuple):
    """Keys and values of one attention layer: S slots per row, the first `next` of them written.

    A token's slot is its index in the row. key, value: [B, K, S, D] (K key heads), the order of
    attention's products, which a CPU would otherwise transpose for each token; next: int [B].

    With W beams for each of B rows, see `of_beams`, a slot holds one token of each beam: key and
    value are [B, K, S * W, D], and next is [B * W]. Beams that follow another one do not copy its
    keys: beams [B, W, S] are the places in each slot from which a beam reads.
    """

    key: jax.Array
    value: jax.Array
    next: jax.Array
    beams: jax.Array | None = None

    @classmethod
    def empty(cls, batch: int, slots: int, n_kv_heads: int, head_dim: int, dtype) -> "Cache":
        kv = jnp.zeros((batch, n_kv_heads, slots, head_dim), dtype)
        return cls(kv, kv, jnp.zeros(batch, jnp.int32))

    def of_beams(self, width: int) -> "Cache":
        """For `width` beams per row, all equal until now."""
        repeat = lambda x: jnp.repeat(x, width, axis=2)
        own = jnp.arange(width)[:, None] + jnp.zeros((len(self.key), 1, self.slots), jnp.int32)
        return Cache(repeat(self.key), repeat(self.value), jnp.repeat(self.next, width), own)

    def follow(self, parent_BW: jax.Array) -> "Cache":
        """With each beam in place of one that follows parent, a beam of the same row."""
        return self._replace(beams=jnp.take_along_axis(self.beams, parent_BW[..., None], axis=1))

    @property
    def slots(self) -> int:
        return self.key.shape[2] if self.beams is None else self.beams.shape[2]

    @property
    def width(self) -> int:
        return 1 if self.beams is None else self.beams.shape[1]

    def write(self, key, value) -> "Cache":
        """The cache with T more tokens in each row: key, value [B * W, T, K, D]."""
        W, T = self.width, key.shape[1]
        first = self.next[::W]

        @jax.vmap
        def put(old, new, at):  # new: [W, T, K, D]
            new = new.astype(old.dtype).transpose(2, 1, 0, 3).reshape(old.shape[0], T * W, -1)
            return jax.lax.dynamic_update_slice_in_dim(old, new, at * W, 1)

        by_row = lambda x: x.reshape(-1, W, *x.shape[1:])
        beams = self.beams
        if beams is not None:
            slot = jnp.arange(self.slots) - first[:, None, None]
            beams = jnp.where((slot >= 0) & (slot < T), jnp.arange(W)[:, None], beams)
        return Cache(
            put(self.key, by_row(key), first),
            put(self.value, by_row(value), first),
            self.next + T,
            beams,
        )

    def seen(self, mask: Mask, T: int) -> jax.Array:
        """Which keys the last T tokens of each row see, bool [B, T, S]. With beams T is 1, and the
        queries of a row are those of its beams: [B, W, S * W]."""
        seen = dense(mask, T, self.slots, self.next - T)
        if self.beams is None:
            return seen
        own = self.beams[..., None] == jnp.arange(self.width)
        return (seen.reshape(self.beams.shape)[..., None] & own).reshape(*own.shape[:2], -1)

    def spread(self, bias_BHTS: jax.Array) -> jax.Array:
        """A bias of the scores of the slots, for the queries and keys of `seen`."""
        if self.beams is None:
            return bias_BHTS
        if len(bias_BHTS) > 1:  # of each beam
            beams = bias_BHTS.reshape(-1, self.width, *bias_BHTS.shape[1:])
            bias_BHTS = beams[:, :, :, 0].swapaxes(1, 2)
        return jnp.repeat(bias_BHTS, self.width, axis=3)


class Span(NamedTuple):
    """Positions and segments of the tokens of a batch.

    positions: int [B, T], of each token in its document.
    segments: int [B, T] or None; tokens attend within their segment (0 = padding).
    """

    positions: jax.Array
    segments: jax.Array | None = None


class Memory(NamedTuple):
    """Keys and values for cross-attention, computed once: [B, K, S, D]; segments: int [B, S] or
    None, 0 = padding. Queries may have a multiple of the rows: consecutive ones, such as the beams
    of a search, read the same row."""

    key: jax.Array
    value: jax.Array
    segments: jax.Array | None = None


class Attention(nn.Module):
    """Multi-head attention; grouped- or single-query where n_kv_heads < n_heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    mask: Mask = Causal()
    use_bias: bool = True
    rope_theta: float = 0.0  # 0 = no rotary positions
    rope_dims: int = 0  # how many dimensions of a head rotate, the first ones; 0 = all
    rope_scaling: Scaling | None = None  # of rotary positions
    scale: float | None = None  # of the scores; None = 1 / sqrt(head_dim)
    softcap: float = 0.0  # scores become softcap * tanh(score / softcap); 0 = unchanged
    qk_norm: str = ""  # RMSNorm of queries and keys: 'head', of each head; 'width', of all together
    norm_eps: float = 1e-6  # of qk_norm
    norm_offset: bool = False  # of qk_norm, see Norm.offset
    kernel: str = "auto"
    init_std: float = 0.02  # of queries, keys and values
    query_std: float | None = None  # of queries; None = init_std
    key_bias: bool = True  # with use_bias: whether keys have one, which has no effect on softmax
    out_bias: bool = True  # with use_bias: whether the output has one
    out_std: float = 0.02
    dropout: float = 0.0  # of the attention weights
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        span: Span,
        cache: Cache | None = None,
        rng: jax.Array | None = None,
        *,
        memory: jax.Array | Memory | None = None,
        memory_segments: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | Memory | None]:
        """(y [B, T, D], the new cache or Memory).

        cache: the keys and values of x are written into its next slots, and the queries read the
        cache. Raises UserError if the mask is not causal: queries would see unwritten slots.
        memory: for cross-attention, what the queries read instead of x: either [B, S, D'], whose
        keys and values are returned as a Memory, or a Memory.
        memory_segments: int [B, S]; tokens of x read those of their segment; None: all tokens.
        bias: added to the scores, [B or 1, H or 1, T, S]. rng: for dropout, or None.
        """
        types = dict(use_bias=self.use_bias, dtype=self.dtype)
        x_BTD = constrain(x_BTD, "batch", "length", "act_embed")

        def heads(name, n, axis, y, **own):
            options = {**types, "init_std": self.init_std, **own}
            y = Dense((n, self.head_dim), ("embed",), (axis, "head_dim"), **options, name=name)(y)
            if self.qk_norm and name != "value":
                y = self._norm(y, f"{name}_norm")
            return constrain(y, "batch", "length", f"act_{axis}", None)

        query_std = self.init_std if self.query_std is None else self.query_std
        q = heads("query", self.n_heads, "heads", x_BTD, init_std=query_std)
        if not isinstance(memory, Memory):
            source = x_BTD if memory is None else memory
            key_bias = self.use_bias and self.key_bias
            k = heads("key", self.n_kv_heads, "kv_heads", source, use_bias=key_bias)
            v = heads("value", self.n_kv_heads, "kv_heads", source)
            if memory is not None:
                memory = Memory(k.swapaxes(1, 2), v.swapaxes(1, 2), memory_segments)
        if self.rope_theta and memory is None:
            length = q.shape[1] if cache is None else cache.slots
            rope = self.rope_theta, self.rope_dims, self.rope_scaling, length
            q, k = (rotary(x, span.positions, *rope) for x in (q, k))
        q_segments, k_segments, seen, new = span.segments, span.segments, None, None
        rows = q.shape
        if memory is not None:
            k, v, k_segments = memory.key, memory.value, memory.segments
            q_segments = None if k_segments is None else _query_segments(x_BTD, span)
            new = memory
        elif cache is not None:
            if not is_causal(self.mask, cache.slots):
                raise UserError(
                    f"Attention with the mask {self.mask} cannot use a cache: its queries see "
                    "later keys, whose slots may not be written yet. Use mask & Causal()."
                )
            new = cache.write(k, v)
            k, v, q_segments, k_segments = new.key, new.value, None, None
            seen = new.seen(self.mask, q.shape[1])
            bias = None if bias is None else new.spread(bias)
        if new is not None:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            if len(k) < len(q):  # the queries of consecutive rows become those of one
                q = q.reshape(len(k), -1, *rows[2:])
                q_segments = None if q_segments is None else q_segments.reshape(len(k), -1)
        added = self.added()
        if added is not None:
            if seen is None:
                seen = dense(self.mask, q.shape[1], k.shape[1], 0, q_segments, k_segments)
            k, v, seen, bias = _before(*added, k, v, seen, bias)
        options = dict(
            mask=self.mask,
            seen=seen,
            q_segments=q_segments,
            k_segments=k_segments,
            bias=bias,
            scale=self.scale,
            softcap=self.softcap,
        )
        if self.is_mutable_collection("intermediates"):  # for pictures and coverage
            p = weights(q, k, **options)
            p = p if added is None else p[..., len(added[0]) :]
            self.sow("intermediates", "weights", p.reshape(*rows[:3], -1))
        o = attend(
            kept(q, "query"),
            kept(k, "key"),
            kept(v, "value"),
            kernel=self.kernel,
            dropout=self.dropout,
            rng=rng,
            **options,
        ).reshape(rows)
        y = Dense(
            (x_BTD.shape[-1],),
            ("heads", "head_dim"),
            ("embed",),
            init_std=self.out_std,
            **(types | {"use_bias": self.use_bias and self.out_bias}),
            name="out",
        )(o)
        return constrain(y, "batch", "residual_length", "act_embed"), new

    def _norm(self, y_BTHD: jax.Array, name: str) -> jax.Array:
        """qk_norm of queries or keys: called in a compact method, which may declare parameters."""
        options = dict(eps=self.norm_eps, dtype=self.dtype, offset=self.norm_offset)
        norm = Norm("rmsnorm", **options, name=name)
        if self.qk_norm == "head":
            return norm(y_BTHD)
        return norm(y_BTHD.reshape(*y_BTHD.shape[:2], -1)).reshape(y_BTHD.shape)

    def added(self) -> tuple[jax.Array, jax.Array] | None:
        """Keys and values [P, K, D] that every query sees beside those of the tokens. None; an
        interceptor (`nn.intercept_methods`) may return some, such as trained ones."""
        return None


def _before(key_PKD, value_PKD, k, v, seen, bias):
    """k and v [B, S, K, D], seen [B or 1, T, S] or None, and a bias of the scores: with P keys and
    values before the others, which have no bias."""
    P = len(key_PKD)
    rows = lambda new, x: jnp.broadcast_to(new.astype(x.dtype), (len(x), *new.shape))
    k, v = (jnp.concatenate([rows(new, x), x], 1) for new, x in ((key_PKD, k), (value_PKD, v)))
    if seen is not None:
        seen = jnp.pad(seen, ((0, 0), (0, 0), (P, 0)), constant_values=True)
    return k, v, seen, None if bias is None else jnp.pad(bias, ((0, 0),) * 3 + ((P, 0),))


def _query_segments(x_BTD: jax.Array, span: Span) -> jax.Array:
    """The segments of queries that read a memory: those of span, or 1, which is not padding."""
    return jnp.ones(x_BTD.shape[:2], jnp.int32) if span.segments is None else span.segments
