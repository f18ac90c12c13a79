"""The task mae against Hugging Face's ViTMAEForPreTraining, frozen by make_mae.py: pixels, mask,
loss and gradients, in float32, and in bfloat16 within its precision.

Errors are measured as in test_gpt.py. Largest seen: 5e-7 in pixels, 3e-6 in gradients; in bfloat16
1e-2 in pixels.
"""

import functools
import json
import pathlib

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.interop import mapping
from bigjax.models import mae, vit
from bigjax.trees import named_leaves
from tests.parity.test_gpt import GRADIENT_BAR, OUTPUT_BAR, error, gradient_errors

HERE = pathlib.Path(__file__).parent


def entries(c: vit.Config, d: vit.Config) -> list[mapping.Entry]:
    """All tensors but those of the class token and its position."""
    pixels = c.patch**2 * c.channels
    out = [
        *mapping.convolution(
            "patch", "vit.embeddings.patch_embeddings.projection", (c.patch,) * 2, 3, c.d_model
        ),
        *mapping.norm("norm", "vit.layernorm", c.d_model),
        *mapping.dense("decoder/embed", "decoder.decoder_embed", c.d_model, d.d_model),
        *mapping.plain("decoder/mask_token", "decoder.mask_token", d.d_model),
        *mapping.norm("decoder/norm", "decoder.decoder_norm", d.d_model),
        *mapping.dense("decoder/pixels", "decoder.decoder_pred", d.d_model, pixels),
    ]
    for config, ours, theirs in (
        (c, "stack", "vit.layers"),
        (d, "decoder/stack", "decoder.decoder_layers"),
    ):
        for i in range(config.n_layers):
            out += layer(config, f"{ours}/layer_{i}", f"{theirs}.{i}")
    return out


def layer(c: vit.Config, ours: str, theirs: str) -> list[mapping.Entry]:
    heads = c.n_heads, c.head_dim
    dense = lambda name, at, ins, outs: mapping.dense(f"{ours}/{name}", f"{theirs}.{at}", ins, outs)
    return [
        *mapping.norm(f"{ours}/norm_1", f"{theirs}.layernorm_before", c.d_model),
        *dense("attention/query", "attention.q_proj", c.d_model, heads),
        *dense("attention/key", "attention.k_proj", c.d_model, heads),
        *dense("attention/value", "attention.v_proj", c.d_model, heads),
        *dense("attention/out", "attention.o_proj", heads, c.d_model),
        *mapping.norm(f"{ours}/norm_2", f"{theirs}.layernorm_after", c.d_model),
        *dense("mlp/up", "mlp.fc1", c.d_model, c.d_ff),
        *dense("mlp/down", "mlp.fc2", c.d_ff, c.d_model),
    ]


def ours(arrays, c, d) -> dict:
    """{our name: array} of tensors by their names."""
    out = {}
    for e in entries(c, d):
        out |= e.to_ours(arrays(e.name).reshape(e.shape))
    out["class_token"] = arrays("vit.embeddings.cls_token")[0, 0]
    return out


@functools.cache
def reference():
    """(arrays, encoder's config, decoder's config, the number of visible patches)."""
    with np.load(HERE / "mae.npz") as f:
        arrays = dict(f)
    x = json.loads(str(arrays["config"]))
    common = dict(
        image_size=x["image_size"],
        patch=x["patch_size"],
        norm_eps=x["layer_norm_eps"],
        attention="einsum",
        scan=False,
    )
    c = vit.Config(
        d_model=x["hidden_size"],
        n_layers=x["num_hidden_layers"],
        n_heads=x["num_attention_heads"],
        d_ff=x["intermediate_size"],
        **common,
    )
    d = vit.Config(
        d_model=x["decoder_hidden_size"],
        n_layers=x["decoder_num_hidden_layers"],
        n_heads=x["decoder_num_attention_heads"],
        d_ff=x["decoder_intermediate_size"],
        **common,
    )
    return arrays, c, d, round(c.grid**2 * (1 - x["mask_ratio"]))


def computed(dtype: str):
    """(loss, pixels, masked, gradients by our names)."""
    arrays, c, d, n_visible = reference()
    c, d = (vit.Config(**{**vars(x), "dtype": dtype}) for x in (c, d))
    params = ours(lambda name: arrays[f"params/{name}"], c, d)
    position = arrays["params/vit.embeddings.position_embeddings"][0]
    params |= {"class_position": position[0], "position": position[1:]}
    model = mae.Autoencoder(c, d, n_visible)
    images = (jnp.asarray(arrays["images"].transpose(0, 2, 3, 1)) + 1) / 2 * 255

    @jax.jit
    def run(params):
        def loss(params):
            pixels, masked = model.apply({"params": params}, images, arrays["noise"])
            errors = ((pixels - mae.standardised(mae.targets(images, c))[0]) ** 2).mean(-1)
            return (errors * masked).sum() / masked.sum(), (pixels, masked)

        return jax.value_and_grad(loss, has_aux=True)(params)

    tree = unflatten_dict({tuple(k.split("/")): jnp.asarray(v) for k, v in params.items()})
    (loss, (pixels, masked)), gradients = run(tree)
    return loss, pixels, masked, named_leaves(gradients)


def test_pixels_loss_and_gradients():
    arrays, c, d, _ = reference()
    loss, pixels, masked, gradients = computed("float32")
    np.testing.assert_array_equal(masked, arrays["mask"] > 0)
    assert error(pixels, arrays["pixels"]) < OUTPUT_BAR
    assert float(loss) == pytest.approx(float(arrays["loss"]), rel=1e-5)
    wanted = ours(lambda name: arrays[f"grads/{name}"], c, d)
    assert {"class_position", "position"} == {*gradients} - {*wanted}
    errors = gradient_errors({name: gradients[name] for name in wanted}, wanted)
    assert max(errors.values()) < GRADIENT_BAR, errors


def test_in_bfloat16():
    arrays, *_ = reference()
    loss, pixels, *_ = computed("bfloat16")
    assert pixels.dtype == jnp.float32 and error(pixels, arrays["pixels"]) < 0.05
    assert float(loss) == pytest.approx(float(arrays["loss"]), rel=0.02)
