"""ViT, ResNet and BiT: exact parameter counts, FLOPs, and what their parts compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from bigjax.errors import UserError
from bigjax.layers import vision
from bigjax.layers.attention import Span
from bigjax.layers.params import unbox
from bigjax.models import convnet, resnet, vit
from bigjax.models.images import IMAGENET, PIXELS, normalised
from bigjax.train import needed
from bigjax.trees import count, named_leaves

SMALL = dict(image_size=8, channels=3, patch=2, d_model=16, n_layers=2, n_heads=2)


def shapes(family, config, n_labels=1000):
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    init = family.Model(config, n_labels).init
    return unbox(jax.eval_shape(init, jax.random.key(0), images)), images


@pytest.mark.parametrize(
    "preset, n",
    {
        "ti16": 5_717_416,
        "s32": 22_878_952,
        "s16": 22_050_664,
        "b32": 88_224_232,
        "b16": 86_567_656,
        "l16": 304_326_632,
        "h14": 632_045_800,
        "g14": 1_012_611_432,
        "s16-plain": 21_974_632,
    }.items(),
)
def test_parameters_of_vit(preset, n):
    """Of the paper's sizes at 224 pixels with 1,000 classes."""
    assert count(shapes(vit, vit.Config(**vit.PRESETS[preset]))[0]["params"]) == n


def test_parameters_of_a_layer_before_the_head():
    c = vit.Config(**vit.PRESETS["s16-plain"], pre_logits=384)
    assert count(shapes(vit, c)[0]["params"]) == 22_122_472


@pytest.mark.parametrize(
    "preset, n, statistics",
    [
        ("18", 11_689_512, 9_600),
        ("50", 25_557_032, 53_120),
        ("152", 60_192_808, 151_424),
        ("bit-r50x1", 25_549_352, 0),
        ("bit-r101x3", 387_934_888, 0),
        ("bit-r152x4", 936_533_224, 0),
    ],
)
def test_parameters_of_resnet(preset, n, statistics):
    variables, _ = shapes(resnet, resnet.Config(**resnet.PRESETS[preset]))
    assert count(variables["params"]) == n
    assert count(variables.get("batch_stats", {})) == statistics


@pytest.mark.parametrize("preset, zero", [("18", False), ("bit-r50x1", True)])
def test_the_head_of_bit_begins_at_zero(preset, zero):
    c = resnet.Config(**resnet.PRESETS[preset] | dict(image_size=32, units=(1,), width=32))
    variables, _ = outputs(c, resnet)
    kernel = np.asarray(variables["params"]["head"]["kernel"])
    assert kernel.any() != zero and (zero or 0.005 < kernel.std() < 0.02)


@pytest.mark.parametrize("preset", ["34", "50", "bit-r50x1"])
@pytest.mark.parametrize("size", [224, 100])
def test_flops_of_resnet_are_those_of_its_convolutions(preset, size):
    c = resnet.Config(**resnet.PRESETS[preset], image_size=size)
    variables, images = shapes(resnet, c, 0)
    jaxpr = jax.make_jaxpr(lambda v, x: resnet.Model(c, 0).apply(v, x).features)(variables, images)
    first = 2 * 7 * 7 * 3 * c.width * (-(-size // 2)) ** 2
    assert resnet.flops_per_image(c) == 3 * needed._count(jaxpr.jaxpr) - first


def test_flops_of_vit_are_those_of_its_products():
    c = vit.Config(**SMALL, attention="einsum", scan=False)
    variables, images = shapes(vit, c, 0)
    jaxpr = jax.make_jaxpr(lambda v, x: vit.Model(c, 0).apply(v, x).features)(variables, images)
    patches = 2 * 2 * 2 * 3 * 16 * 16
    assert vit.flops_per_image(c) == 3 * needed._count(jaxpr.jaxpr) - patches


def test_patches_are_squares_row_by_row():
    image = np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    got = vit.patches(jnp.asarray(image), vit.Config(**SMALL))
    for i, (y, x) in enumerate(np.ndindex(4, 4)):
        want = image[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        np.testing.assert_array_equal(got[:, i], want)


def test_fixed_positions_by_hand():
    """Of a 2 x 3 grid: sines and cosines of the column at two frequencies, then of the row."""
    got = vit.sincos2d(2, 3, 8)
    for i, (y, x) in enumerate(np.ndindex(2, 3)):
        angles = [1.0, 1e-4]
        want = [f(n * a) for n in (x, y) for f in (np.sin, np.cos) for a in angles]
        np.testing.assert_allclose(got[i], want, rtol=1e-6)


def outputs(c, family=vit, n_labels=3, rng=None, seed=0, images=None):
    model = family.Model(c, n_labels)
    if images is None:
        shape = (4, c.image_size, c.image_size, c.channels)
        images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    variables = unbox(jax.jit(model.init)(jax.random.key(seed), images[:1]))
    return variables, jax.jit(model.apply)(variables, images, rng=rng)


@pytest.mark.parametrize(
    "options",
    [
        dict(pooling="class"),
        dict(pooling="mean", position="sincos2d", registers=2),
        dict(pooling="map", registers=2, layer_scale=0.1),
        dict(pooling="class", registers=3, pre_logits=5, activation="swiglu"),
        dict(pooling="class_mean", registers=2, layer_scale=1.0),
    ],
    ids=str,
)
def test_forms_of_vit(options):
    c = vit.Config(**SMALL, **options)
    _, out = outputs(c)
    assert out.logits.shape == (4, 3) and out.logits.dtype == jnp.float32
    width = 32 if c.pooling == "class_mean" else options.get("pre_logits", 16)
    assert out.features.shape == (4, width)
    if c.pooling in ("class_mean", "mean"):  # of the patches alone
        np.testing.assert_allclose(out.features[:, -16:], out.grid.mean(1), atol=1e-6)
    assert out.grid.shape == (4, 16, 16)
    assert c.n_tokens == 16 + c.registers + c.pooling.startswith("class")
    _, unrolled = outputs(vit.Config(**SMALL, **options, scan=False))
    assert np.isfinite(out.features).all() and unrolled.features.shape == out.features.shape


def test_stochastic_depth_drops_branches_of_whole_images():
    """At the end of the stack most; an image whose branches are all dropped is its embedding."""
    c = vit.Config(**SMALL, drop_path=0.9, pooling="mean")
    images = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(64, 0)
    variables, still = outputs(c, images=images)
    model = vit.Model(c, 3)
    moved = model.apply(variables, images, rng=jax.random.key(1)).features
    # The first layer is never dropped, the second one in nine of ten images.
    kinds = np.unique(np.round(np.asarray(moved), 4), axis=0)
    assert 2 <= len(kinds) <= 4 and np.ptp(np.asarray(still.features), axis=0).max() < 1e-5
    same = sum(np.allclose(moved[0], x, atol=1e-4) for x in moved)
    assert 1 <= same < 64


@pytest.mark.parametrize("branch", ["attention/out", "mlp/down"])
def test_a_branch_that_is_not_dropped_is_scaled(branch):
    """So that its expectation stays; the rate grows linearly from the first layer to the last."""
    c = vit.Config(**SMALL | dict(n_layers=3), drop_path=0.5)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (3, 16)), (400, 3, 16))
    span = Span(jnp.broadcast_to(jnp.arange(3), (400, 3)))
    block = vit.Block(c)
    variables = jax.jit(block.init, static_argnums=(4, 5))(
        jax.random.key(1), x, 0, span, None, None
    )
    params = unbox(variables)["params"]
    module, layer = branch.split("/")  # the other one adds nothing
    params[module][layer]["kernel"] = jnp.zeros_like(params[module][layer]["kernel"])
    run = jax.jit(lambda i, rng: block.apply({"params": params}, x, i, span, None, rng)[0] - x)
    whole = run(0, None)[0]
    for i, keep in enumerate((1.0, 0.75, 0.5)):
        added = np.asarray(run(i, jax.random.key(2)))
        kept = np.abs(added).max((1, 2)) > 0
        assert kept.mean() == pytest.approx(keep, abs=0.07)
        np.testing.assert_allclose(added[kept], [whole / keep] * kept.sum(), rtol=1e-3, atol=1e-5)


def test_the_branches_of_a_layer_are_dropped_independently():
    c = vit.Config(**SMALL, drop_path=0.5)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (3, 16)), (400, 3, 16))
    span = Span(jnp.broadcast_to(jnp.arange(3), (400, 3)))
    block = vit.Block(c)
    run = lambda key: block.init_with_output(key, x, 1, span, None, jax.random.key(2))[0][0]
    out = jax.jit(run)(jax.random.key(1))
    kinds, n = np.unique(np.round(np.asarray(out[:, 0]), 3), axis=0, return_counts=True)
    assert len(kinds) == 4 and n.min() > 60  # neither, one, the other, both


def test_attention_pooling_by_hand():
    """One query over all tokens, then an MLP beside a residual connection."""
    c = vit.Config(**SMALL, pooling="map")
    x = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    pool = vit.AttentionPool(c)
    params = unbox(jax.eval_shape(pool.init, jax.random.key(1), x))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), params)
    a, m = params["attention"], params["mlp"]
    project = lambda x, p: np.einsum("...d,dhk->...hk", x, p["kernel"]) + p["bias"]
    q, k, v = project(params["query"][0], a["query"]), project(x, a["key"]), project(x, a["value"])
    weights = special.softmax(np.einsum("hk,bthk->bth", q, k) / 8**0.5, axis=1)
    y = np.einsum("bth,bthk->bhk", weights, v)
    y = np.einsum("bhk,hkd->bd", y, a["out"]["kernel"]) + a["out"]["bias"]
    z = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + c.norm_eps)
    z = z * params["norm"]["scale"] + params["norm"]["bias"]
    z = z @ m["up"]["kernel"] + m["up"]["bias"]
    z = z * special.ndtr(z)  # the exact form of GELU
    want = y + z @ m["down"]["kernel"] + m["down"]["bias"]
    got = jax.jit(pool.apply)({"params": params}, x)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_the_layer_before_the_head_has_a_tanh():
    variables, out = outputs(vit.Config(**SMALL, pre_logits=5))
    params = dict(variables["params"])
    layer = params.pop("pre_logits")
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    model = vit.Model(vit.Config(**SMALL), 0)
    features = jax.jit(model.apply)({"params": params}, images).features
    want = np.tanh(features @ layer["kernel"] + layer["bias"])
    np.testing.assert_allclose(out.features, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [resnet, convnet])
def test_statistics_move_by_the_momentum_of_the_config(family):
    own = dict(units=(1,), width=4, stem="small")
    if family is convnet:
        own = dict(filters=(4,), hidden=(), norm="batchnorm")
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    means = []
    for momentum in (0.5, 0.9):
        model = family.Model(family.Config(image_size=8, momentum=momentum, **own), 3)
        variables = jax.jit(model.init)(jax.random.key(0), images)
        run = jax.jit(lambda v, model=model: model.apply(v, images, mutable=["batch_stats"])[1])
        new = run(variables)["batch_stats"]
        means.append(jax.tree.map(lambda x: x / (1 - momentum), named(new, "mean")))
    assert means[0] and all(np.abs(x).max() > 0 for x in means[0].values())
    for name, x in means[0].items():
        np.testing.assert_allclose(x, means[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def named(tree, last):
    return {n: x for n, x in named_leaves(unbox(tree)).items() if n.endswith(f"/{last}")}


@pytest.mark.parametrize("bottleneck, last", [(True, "norm_3"), (False, "norm_2")])
def test_the_last_norm_of_a_unit_begins_at_zero(bottleneck, last):
    """So that it adds nothing at first (https://arxiv.org/abs/1706.02677)."""
    c = resnet.Config(image_size=8, units=(2, 1), width=4, bottleneck=bottleneck, stem="small")
    scales = named(outputs(c, resnet)[0]["params"], "scale")
    zero = {name for name, x in scales.items() if not np.any(x)}
    assert zero == {name for name in scales if name.split("/")[1] == last} and len(zero) == 3
    assert all((np.asarray(x) == 1).all() for name, x in scales.items() if name not in zero)


def test_statistics_of_a_bfloat16_model_are_those_of_float32():
    x = np.random.default_rng(0).normal(100, 1, (8, 16, 16, 8)).astype(jnp.bfloat16)
    for norm in (vision.BatchNorm(dtype="bfloat16"), vision.GroupNorm(4, dtype="bfloat16")):
        variables = norm.init(jax.random.key(0), x)
        run = lambda norm, x, v=variables: norm.apply(v, x, mutable=["batch_stats"])[0]
        got = run(norm, x).astype(np.float32)
        assert got.std() == pytest.approx(1, abs=0.01)
        want = run(norm.clone(dtype="float32"), x.astype(np.float32))
        np.testing.assert_allclose(got, want, atol=0.02)


def test_batch_norm_in_training_and_evaluation():
    """The statistics of the batch; the average moves by a tenth, with the unbiased variance."""
    x = np.random.default_rng(0).normal(2, 3, (4, 3, 3, 5)).astype(np.float32)
    norm = vision.BatchNorm()
    variables = unbox(norm.init(jax.random.key(0), x))
    assert not variables["batch_stats"]["mean"].any()  # initialising is not training
    y, new = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(np.asarray(y).mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, atol=1e-3)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    unbiased = x.reshape(-1, 5).var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    got = norm.apply({**variables, **new}, x)
    want = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_group_norm_and_standardised_weights():
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 3, 8)).astype(np.float32)
    norm = vision.GroupNorm(groups=4)
    y = norm.apply(unbox(norm.init(jax.random.key(0), x)), x)
    by_group = np.asarray(y).reshape(2, 9, 4, 2)
    np.testing.assert_allclose(by_group.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(by_group.std((1, 3)), 1, atol=1e-3)
    kernel = np.random.default_rng(0).normal(1, 3, (3, 3, 4, 5)).astype(np.float32)
    w = np.asarray(vision.standardised(jnp.asarray(kernel), 1e-8))
    np.testing.assert_allclose(w.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(w.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [8, 9])
def test_convolutions_are_padded_on_all_sides(size, stride, side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    conv = vision.Conv2D(4, size, stride)
    variables = unbox(conv.init(jax.random.key(0), x))
    kernel = np.asarray(variables["params"]["kernel"])
    p = size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    n = (side + 2 * p - size) // stride + 1
    want = np.zeros((2, n, n, 4), np.float32)
    for i, j in np.ndindex(n, n):
        window = padded[:, stride * i :, stride * j :][:, :size, :size]
        want[:, i, j] = np.tensordot(window, kernel, 3)
    np.testing.assert_allclose(conv.apply(variables, x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, bottleneck",
    [
        ({}, False),
        (dict(preactivation=True, norm="groupnorm", groups=4), True),
    ],
)
def test_remat_of_units_changes_nothing(options, bottleneck):
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    grads = []
    for remat in ("none", "full"):
        c = resnet.Config(
            image_size=16, units=(1, 1), width=8, bottleneck=bottleneck, remat=remat, **options
        )
        model = resnet.Model(c, 3)
        variables = unbox(model.init(jax.random.key(0), images[:1]))
        params = variables.pop("params")
        loss = lambda p: jnp.square(
            model.apply({"params": p, **variables}, images, mutable=[*variables])[0].features
        ).sum()
        grads.append(jax.grad(loss)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), *grads)


def test_pixels_are_normalised_on_the_device():
    c = vit.Config(**SMALL, mean=IMAGENET.mean, std=IMAGENET.std)
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    want = (images / 255 - IMAGENET.mean) / IMAGENET.std
    np.testing.assert_allclose(normalised(jnp.asarray(images), c), want, rtol=1e-5, atol=1e-6)
    assert PIXELS == ((0.5,), (0.5,))
    with pytest.raises(UserError, match=r"images are \[7, 8, 3\].*model is for \[8, 8, 3\]"):
        normalised(jnp.asarray(images[:, :7]), c)


@pytest.mark.parametrize("family", [vit, resnet, convnet])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_pixels_have_a_mean_for_each_channel_or_one_for_all(family, field):
    """Three of one channel would make three channels."""
    one = dict(mean=(0.5,), std=(0.5,))
    for channels, values in ((1, (0.5,)), (3, (0.5,)), (3, (0.1, 0.2, 0.3))):
        family.Config(channels=channels, **{**one, field: values})
    for channels, values in ((1, (0.1, 0.2, 0.3)), (3, (0.1, 0.2)), (3, ())):
        with pytest.raises(
            UserError, match=f"model.{field} has {len(values)} numbers, but .*{channels}"
        ):
            family.Config(channels=channels, **{**one, field: values})


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: vit.Config(image_size=30, patch=16),
            "image_size=30 is not a multiple .* 16 or 32",
        ),
        (lambda: vit.Config(d_model=10, n_heads=3), "does not divide into model.n_heads=3"),
        (lambda: vit.Config(pooling="max"), "'max'; allowed: class, mean, class_mean, map"),
        (
            lambda: resnet.Config(width=60, norm="groupnorm"),
            "width=60 is not a multiple .*groups=32",
        ),
        (lambda: resnet.Config(remat="dots"), "model.remat is 'dots'; allowed: none, full"),
        (lambda: resnet.Config(units=()), "model.units is empty"),
    ],
)
def test_sizes_that_do_not_fit(make, words):
    with pytest.raises(UserError, match=words):
        make()
