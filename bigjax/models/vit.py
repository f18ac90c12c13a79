"""Vision Transformers (https://arxiv.org/abs/2010.11929)."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.bounds import FINITE, FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.interop import vit as hugging_face
from bigjax.layers.attention import Attention, Span
from bigjax.layers.basic import ACTIVATIONS, GATES, MLP, Dense, Norm, dropout
from bigjax.layers.mask import Full, mean_keys
from bigjax.layers.params import param
from bigjax.layers.positions import sinusoids
from bigjax.layers.remat import kept
from bigjax.layers.stack import Stack
from bigjax.models import (
    OF_A_RUN,
    Adapted,
    ImageOutput,
    PlanSizes,
    check_attention,
    check_fields,
    check_heads,
)
from bigjax.models.images import PIXELS, check_pixels, head, normalised, resized_grid
from bigjax.parallel.sharding import constrain

HUGGING_FACE = (hugging_face.FAMILY, hugging_face.DINOV2, hugging_face.REGISTERS)
MASK = Full()
POOLING = ("class", "mean", "class_mean", "map")
WITH_CLASS = ("class", "class_mean")  # which have a token for the class


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: int = 224  # height and width; data.size has to be equal
    channels: int = 3
    patch: int = 16  # height and width of a patch; divides image_size
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_ff: int = 0  # 0 = 4 d_model
    pooling: str = "class"  # class (a token for it), mean, class_mean (both, concatenated: DINOv2),
    # map (attention with one query)
    position: str = "learned"  # learned, sincos2d (fixed)
    registers: int = 0  # tokens without a place in the image (https://arxiv.org/abs/2309.16588)
    layer_scale: float = 0.0  # initial factor of each residual branch (CaiT); 0 = none
    pre_logits: int = 0  # width of a dense layer and tanh before the head; 0 = none
    activation: str = "gelu_exact"  # gelu_exact, gelu (tanh), relu, silu, swiglu, geglu
    norm_eps: float = 1e-6
    dropout: float = 0.0  # of embeddings and residual branches
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the residual branches of the last layer; linear from 0 (stochastic
    # depth, https://arxiv.org/abs/1603.09382)
    mean: tuple[float, ...] = PIXELS.mean  # of values of 0 to 1, for each channel or for all
    std: tuple[float, ...] = PIXELS.std
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # auto (by backend), or a name of layers/kernels.KERNELS
    scan: bool = True  # layers scanned, or unrolled
    remat: str = "none"  # what the backward pass recomputes: none, dots, ...; layers/remat.py

    MAY_CHANGE = (*OF_A_RUN, "drop_path")
    RANGES = {
        **dict.fromkeys(("image_size", "channels", "patch", "d_model"), at_least(1)),
        **dict.fromkeys(("n_layers", "n_heads"), at_least(1)),
        **dict.fromkeys(("d_ff", "registers", "pre_logits", "layer_scale"), at_least(0)),
        **dict.fromkeys(("norm_eps", "std"), POSITIVE),
        "mean": FINITE,
        **dict.fromkeys(("dropout", "attention_dropout", "drop_path"), FRACTION),
    }

    def __post_init__(self):
        check_ranges("model", self)
        check_pixels(self)
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        check_fields(
            self,
            {
                "pooling": POOLING,
                "position": ("learned", "sincos2d"),
                "activation": ACTIVATIONS,
            },
        )
        if self.image_size % self.patch:
            near = [
                n for n in (self.image_size // self.patch, self.image_size // self.patch + 1) if n
            ]
            raise UserError(
                f"model.image_size={self.image_size} is not a multiple of model.patch="
                f"{self.patch}. Set image_size and data.size to "
                f"{' or '.join(str(n * self.patch) for n in near)}."
            )
        check_heads(self)
        if self.position == "sincos2d" and self.d_model % 4:
            raise UserError(
                f"model.d_model={self.d_model}: position='sincos2d' needs a multiple of 4."
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def attention_std(self) -> dict[str, float]:
        """Glorot's initialisation, which suits narrow models too, of attention and MLP."""
        return dict.fromkeys(("init_std", "out_std"), self.d_model**-0.5)

    @property
    def mlp_std(self) -> dict[str, float]:
        return dict.fromkeys(("init_std", "out_std"), (2 / (self.d_model + self.d_ff)) ** 0.5)

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch

    @property
    def n_tokens(self) -> int:
        return self.grid**2 + self.n_extra

    @property
    def n_extra(self) -> int:
        """Tokens before those of the patches: for the class, and registers."""
        return self.registers + (self.pooling in WITH_CLASS)


class Block(nn.Module):
    """Norm, attention, residual; norm, MLP, residual."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD, i, span: Span, cache: None, rng):
        c = self.config
        keys = [None] * 5
        if rng is not None:
            keys = jax.random.split(jax.random.fold_in(rng, i), 5)
        norm = lambda name: Norm(eps=c.norm_eps, dtype=c.dtype, name=name)
        x_BTD = kept(x_BTD, "input")
        a, _ = Attention(
            c.n_heads,
            c.n_heads,
            c.head_dim,
            MASK,
            kernel=c.attention,
            dropout=c.attention_dropout,
            **c.attention_std,
            dtype=c.dtype,
            name="attention",
        )(norm("norm_1")(x_BTD), span, rng=keys[0])
        x_BTD = kept(x_BTD + self._branch(a, "scale_1", i, keys[1], keys[2]), "residual")
        m = MLP(c.d_ff, c.activation, **c.mlp_std, dtype=c.dtype, name="mlp")(norm("norm_2")(x_BTD))
        x_BTD = x_BTD + self._branch(m, "scale_2", i, keys[3], keys[4])
        return constrain(x_BTD, "batch", "residual_length", "act_embed"), (cache, {})

    def _branch(self, y_BTD, name: str, i, dropout_key, path_key):
        """What a residual branch adds."""
        c = self.config
        if c.layer_scale:
            init = nn.initializers.constant(c.layer_scale)
            y_BTD = y_BTD * param(self, name, init, (c.d_model,), ("norm",)).astype(y_BTD.dtype)
        y_BTD = dropout(y_BTD, c.dropout, dropout_key)
        if path_key is None or not c.drop_path:
            return y_BTD
        keep = 1 - c.drop_path * i / max(1, c.n_layers - 1)  # i is traced in a scanned stack
        drawn = jax.random.bernoulli(path_key, keep, (len(y_BTD), 1, 1))
        return jnp.where(drawn, y_BTD / keep, 0).astype(y_BTD.dtype)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, and an MLP follows (MAP,
    https://arxiv.org/abs/1810.00825, as big_vision's MAPHead)."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        query = param(
            self, "query", nn.initializers.xavier_uniform(), (1, c.d_model), (None, "norm")
        )
        query = jnp.broadcast_to(query.astype(c.dtype), (len(x_BTD), 1, c.d_model))
        types = dict(dtype=c.dtype)
        attention = Attention(
            c.n_heads, c.n_heads, c.head_dim, MASK, kernel="einsum", **types, name="attention"
        )
        y, _ = attention(query, Span(jnp.zeros((len(x_BTD), 1), int)), memory=x_BTD)
        m = Norm(eps=c.norm_eps, **types, name="norm")(y)
        return (y + MLP(c.d_ff, c.activation, **types, name="mlp")(m))[:, 0]


class Model(nn.Module):
    """Images to logits of n_labels classes, or without a head to features (n_labels=0)."""

    config: Config
    n_labels: int = 1000

    @nn.compact
    def __call__(
        self,
        images_BHWC: jax.Array,
        *,
        keep_BK: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> ImageOutput:
        """images: uint8, or floats of 0 to 255, [B, image_size, image_size, channels]. keep: the
        numbers of the patches that are encoded, as in masked autoencoding; None = all. rng: for
        dropout and stochastic depth; None turns them off. Raises UserError for another size."""
        c = self.config
        types = dict(dtype=c.dtype)
        x = patches(normalised(images_BHWC, c), c)
        std = (c.patch**2 * c.channels) ** -0.5  # unit variance, whatever the size of a patch
        axes = (None, None, None), ("embed",)
        x = Dense((c.d_model,), *axes, init_std=std, **types, name="patch")(x)
        x = x + self._positions().astype(x.dtype)
        if keep_BK is not None:
            x = jnp.take_along_axis(x, keep_BK[..., None], axis=1)
        if c.n_extra:
            first = jnp.broadcast_to(
                self._first_tokens().astype(x.dtype), (len(x), c.n_extra, c.d_model)
            )
            x = jnp.concatenate([first, x], axis=1)
        key = None if rng is None else jax.random.fold_in(rng, c.n_layers)
        x = constrain(dropout(x, c.dropout, key), "batch", "residual_length", "act_embed")
        span = Span(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))
        x, _, sums = Stack((Block,), c, c.n_layers, c.scan, c.remat, name="stack")(
            x, span, None, rng
        )
        x = Norm(eps=c.norm_eps, **types, name="norm")(x)
        grid = x[:, c.n_extra :]
        if c.pooling == "class":
            y = x[:, 0]
        elif c.pooling == "class_mean":
            y = jnp.concatenate([x[:, 0], grid.mean(1)], axis=-1)
        elif c.pooling == "map":
            y = AttentionPool(c, name="pool")(x)
        else:
            y = grid.mean(1)
        if c.pre_logits:
            y = Dense((c.pre_logits,), ("embed",), ("norm",), **types, name="pre_logits")(y)
            y = jnp.tanh(y)
        logits = head(y, self.n_labels, 0.0, c.dtype)
        return ImageOutput(logits, y.astype(jnp.float32), grid, sums)

    def _first_tokens(self) -> jax.Array:
        """[n_extra, d_model]: that of the class with its position, then the registers."""
        c, init, tokens = self.config, nn.initializers.normal(0.02), []
        if c.pooling in WITH_CLASS:
            token = param(self, "class_token", init, (c.d_model,), ("norm",))
            if c.position == "learned":
                token = token + param(self, "class_position", init, (c.d_model,), ("norm",))
            tokens.append(token[None])
        if c.registers:
            shape = c.registers, c.d_model
            tokens.append(param(self, "registers", init, shape, (None, "norm")))
        return jnp.concatenate(tokens)

    def _positions(self) -> jax.Array:
        """[grid * grid, d_model]."""
        c = self.config
        if c.position == "sincos2d":
            return jnp.asarray(sincos2d(c.grid, c.grid, c.d_model))
        init, shape = nn.initializers.normal(c.d_model**-0.5), (c.grid**2, c.d_model)
        return param(self, "position", init, shape, ("position", "norm"))


def patches(images_BHWC: jax.Array, c: Config) -> jax.Array:
    """[B, grid * grid, patch, patch, channels], row by row."""
    B, p, g = len(images_BHWC), c.patch, c.grid
    x = images_BHWC.reshape(B, g, p, g, p, c.channels).swapaxes(2, 3)
    return x.reshape(B, g * g, p, p, c.channels)


def sincos2d(height: int, width: int, d: int) -> np.ndarray:
    """Fixed positions float32 [height * width, d]: sines and cosines of the column, then of the
    row (MoCo v3, https://arxiv.org/abs/2104.02057, as big_vision)."""
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    axis = lambda n: sinusoids(n, d // 2, halves=True, inclusive=True)
    return np.concatenate([axis(width)[x], axis(height)[y]], 1)


check_mesh = check_attention


# The parameters that a field of Config gives their shape or number, and how to set others.
_SHAPED = {
    "patch": "patch/",
    "channels": "patch/",
    "d_model": "",
    "n_layers": "stack/",
    "n_heads": "stack/",
    "d_ff": "stack/",
}


def adapt(theirs: Mapping[str, Any], c: Config, names: Collection[str]) -> dict[str, Adapted]:
    """How parameters of another ViT become those of this one: positions of another image size.

    theirs: its config.model. names: of its parameters, those that are loaded. Raises UserError for
    another patch size, width or depth.
    """
    for field, start in _SHAPED.items():
        other, own = theirs.get(field), getattr(c, field)
        if other not in (None, own) and any(n.startswith(start) for n in names):
            reset = f"or init_reset='^{start}' to initialise these parameters from scratch"
            raise UserError(
                f"config.init_from holds a model with model.{field}={other}, but this run has "
                f"model.{field}={own}. Set model.preset='init_from' to use its sizes"
                + (f", {reset}." if start else ", and remove your own.")
            )
    if theirs.get("position", c.position) != "learned" or "position" not in names:
        return {}
    before, after = theirs["image_size"] // theirs["patch"], c.grid
    if before == after:
        return {}
    return {"position": Adapted((after**2, c.d_model), lambda x: resized_grid(x, before, after))}


def plan_sizes(c: Config) -> PlanSizes:
    return PlanSizes(c.n_layers, c.d_model, c.d_ff, c.d_model, 2 * c.d_model)


def flops_per_image(c: Config) -> float:
    """Of training on one image, forward and backward: 6 per weight and token, and 12 * layers *
    width for each pair of tokens. Pooling and the head are not counted."""
    return flops_of_layers(c, c.n_tokens) + flops_of_patches(c)


def flops_of_patches(c: Config) -> float:
    """Of training their embedding; images have no gradient."""
    return 4.0 * c.patch**2 * c.channels * c.d_model * c.grid**2


def flops_of_layers(c: Config, n_tokens: int) -> float:
    """Of training the layers on n tokens."""
    gate = 1 if c.activation in GATES else 0
    weights = c.n_layers * (4 * c.d_model**2 + (2 + gate) * c.d_model * c.d_ff)
    scores = 12.0 * c.n_layers * c.d_model * mean_keys(MASK, n_tokens)
    return n_tokens * (6.0 * weights + scores)


def _vit(n_layers, d_model, n_heads, d_ff, patch, **more):
    return dict(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_ff=d_ff, patch=patch, **more)


_SIZES = {  # https://arxiv.org/abs/2010.11929; g: https://arxiv.org/abs/2106.04560
    "ti": (12, 192, 3, 768),
    "s": (12, 384, 6, 1536),
    "b": (12, 768, 12, 3072),
    "l": (24, 1024, 16, 4096),
    "h": (32, 1280, 16, 5120),
    "g": (40, 1408, 16, 6144),
}
PRESETS = {
    f"{name}{patch}": _vit(*sizes, patch)
    for name, sizes in _SIZES.items()
    for patch in (14, 16, 32)
}
# https://arxiv.org/abs/2205.01580: mean pooling and fixed positions.
PRESETS["s16-plain"] = _vit(*_SIZES["s"], 16, pooling="mean", position="sincos2d")
