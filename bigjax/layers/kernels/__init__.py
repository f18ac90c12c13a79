"""Attention kernels, one file each; `attend` selects one.

All take q [B, T, H, D], k and v [B, S, K, D] with H a multiple of K, a mask (layers/mask.py),
segments [B, T], [B, S] or None, a bias of the scores [B or 1, H or 1, T, S] or None, and a scale;
all return [B, T, H, D] with the same numbers. Scores and softmax are in float32. softcap: scores,
scaled and before the bias, become softcap * tanh(score / softcap); 0 = unchanged.

`einsum` supports everything. The others are for complete sequences without dropout, and define
  attention(q, k, v, mask, q_segments, k_segments, bias, scale), and with SOFTCAP softcap=0.0;
  unsupported(q, k, ways, bias) -> what of these shapes and dtypes it does not support, '' if
    nothing; ways: the number of devices over which the queries of a row are sharded;
  BIAS, SOFTCAP: whether it supports a bias, a soft cap; PLATFORMS: jax's names of the only ones
    that it runs on, or ().
"""

from collections.abc import Mapping
import importlib
from types import ModuleType

import jax

from bigjax.errors import UserError
from bigjax.layers.kernels import einsum
from bigjax.layers.mask import Mask, dense
from bigjax.parallel.mesh import platform

KERNELS = ("einsum", "blocked", "splash", "whole", "cudnn")
# The first one that supports the shapes; `einsum` if none does.
BY_PLATFORM = {
    "cpu": ("blocked",),
    "tpu": ("splash", "whole"),
    "gpu": ("cudnn",),
    "cuda": ("cudnn",),
}


def attend(
    q,
    k,
    v,
    *,
    mask: Mask,
    seen=None,
    q_segments=None,
    k_segments=None,
    bias=None,
    scale: float | None = None,
    softcap: float = 0.0,
    kernel: str = "auto",
    dropout: float = 0.0,
    rng=None,
) -> jax.Array:
    """Softmax attention: by a kernel for complete sequences, by `einsum` with a cache.

    seen: which keys each query sees, bool [B or 1, T, S], in place of mask and segments. scale: of
    the scores, by default 1 / sqrt(D). dropout: of the attention weights; off without an rng.
    kernel: 'auto', the backend's, or a name of KERNELS; `einsum` is used for lengths, dtypes and
    widths of heads that the kernel does not support, as when generating from a short prompt:
    training refuses them at its start, see `check`. Raises UserError if a kernel is named and the
    model has a bias or soft cap that it never supports, or dropout, which only training has.
    """
    dropping = rng is not None and dropout > 0
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    named = kernel != "auto"
    candidates = (kernel,) if named else BY_PLATFORM.get(platform(), ())
    ways = _length_shards(jax.sharding.get_abstract_mesh())
    for name in candidates if seen is None else ():
        if name == "einsum":
            break
        module = _module(name)
        never = _never_supported(module, bias is not None, softcap > 0, dropping)
        if named:
            _refuse(name, never)
        if not never and not module.unsupported(q, k, ways, bias):
            more = {"softcap": softcap} if softcap else {}
            return module.attention(q, k, v, mask, q_segments, k_segments, bias, scale, **more)
    if seen is None:
        seen = dense(mask, q.shape[1], k.shape[1], 0, q_segments, k_segments)
    dropout = dropout if dropping else 0.0
    return einsum.attention(q, k, v, seen, bias, scale, dropout, rng, softcap)


def weights(
    q,
    k,
    *,
    mask: Mask,
    seen=None,
    q_segments=None,
    k_segments=None,
    bias=None,
    scale=None,
    softcap: float = 0.0,
) -> jax.Array:
    """The attention weights that `attend` applies to the values, float32 [B, T, H, S]."""
    if seen is None:
        seen = dense(mask, q.shape[1], k.shape[1], 0, q_segments, k_segments)
    p = einsum.weights(q, k, seen, bias, scale, softcap)
    return p.reshape(p.shape[0], -1, *p.shape[3:]).swapaxes(1, 2)


def check(
    kernel: str,
    lengths: Mapping[str, int],
    mesh: jax.sharding.Mesh,
    dtype: str = "bfloat16",
    head_dim: int = 8,
    dropout: float = 0.0,
    softcap: float = 0.0,
) -> None:
    """Raises UserError if a kernel that a config names cannot train a model on a mesh.

    lengths: {config key: length} of the sequences that attention runs over. dropout: of the
    attention weights. softcap: of the scores.
    """
    if kernel in ("auto", "einsum"):
        return
    module = _module(kernel)
    on = mesh.devices.flat[0].platform
    if module.PLATFORMS and on not in module.PLATFORMS:
        raise UserError(
            f"model.attention={kernel!r} is for devices of the kind {module.PLATFORMS[0]}, and "
            f"these are {on}: use 'auto'."
        )
    _refuse(kernel, _never_supported(module, False, softcap > 0, dropout > 0))
    for key, length in lengths.items():
        x = jax.ShapeDtypeStruct((1, length, 1, head_dim), dtype)
        reason = module.unsupported(x, x, _length_shards(mesh))
        _refuse(kernel, reason and f"{reason} ({key}={length})")


def _module(kernel: str) -> ModuleType:
    return importlib.import_module(f"bigjax.layers.kernels.{kernel}")  # splash is slow to import


def _length_shards(mesh) -> int:
    """The number of devices over which the queries of a row are sharded."""
    return mesh.shape.get("sequence", 1)


def _never_supported(module: ModuleType, has_bias: bool, capped: bool, dropping: bool) -> str:
    """What a kernel other than einsum does not support for any length or dtype, '' if nothing."""
    if dropping:
        return "dropout of the attention weights (model.attention_dropout)"
    if capped and not module.SOFTCAP:
        return "a soft cap of the scores (model.attention_softcap)"
    return "a bias of the scores, which this model has" if has_bias and not module.BIAS else ""


def _refuse(kernel: str, reason: str) -> None:
    """Raises UserError if there is a reason."""
    if reason:
        allowed = ("auto", "einsum") if kernel == "blocked" else ("auto", "blocked", "einsum")
        raise UserError(
            f"model.attention={kernel!r} does not support {reason}. Change that, or set "
            f"model.attention to {' or '.join(map(repr, allowed))}."
        )
