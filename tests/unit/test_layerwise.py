"""Selecting parameters by path and layer, alike for a scanned and an unrolled stack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax import config, optim
from bigjax.errors import UserError
from bigjax.layers.params import stack_layers, unbox, unstack_layers
from bigjax.models import convnet, gpt, resnet, vit
from bigjax.optim.layerwise import decay_factors, matches
from bigjax.trees import layer_names, named_leaves


def params():
    """Three layers; every parameter differs."""
    rng = np.random.default_rng(0)
    layer = lambda: {
        "mlp": {"kernel": jnp.array(rng.normal(size=(2, 3)))},
        "norm_1": {"scale": jnp.array(rng.normal(size=2))},
    }
    unrolled = {
        "embed": {"embedding": jnp.array(rng.normal(size=(4, 2)))},
        "stack": {f"layer_{i}": layer() for i in range(3)},
        "classifier": {"kernel": jnp.array(rng.normal(size=(2, 2)))},
    }
    return unrolled, {**unrolled, "stack": stack_layers(unrolled["stack"])}


def by_layer(tree):
    """{unrolled name: value} from a tree with one value per parameter or per layer."""
    shapes, out = named_leaves(params()[1]), {}
    for name, x in named_leaves(tree).items():
        names = layer_names(name, shapes.get(name, np.zeros(1)))
        out.update(zip(names, np.broadcast_to(x, len(names)).tolist()))
    return out


@pytest.mark.parametrize(
    "pattern, n",
    [
        ("layer_1/", 2),
        ("embed|layer_[01]/", 5),
        ("norm_1", 3),
        ("stack", 6),
        ("kernel$", 4),
        ("layer_2/mlp", 1),
    ],
)
def test_a_pattern_matches_the_same_layers_in_both_forms(pattern, n):
    matched = [by_layer(matches(pattern, p, "key")) for p in params()]
    assert matched[0] == matched[1] and sum(matched[0].values()) == n


def test_a_pattern_of_the_scanned_form_matches_all_layers():
    matched = matches("stack/layers/mlp", params()[1], "key")
    assert matched["stack"]["layers"]["mlp"]["kernel"] is True


def test_only_kernels_and_embeddings_decay_by_default():
    model = gpt.Model(gpt.Config(vocab_size=7, max_len=4, d_model=4, n_layers=1, n_heads=1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    matched = named_leaves(matches(config.new_config().optim.decay_params, unbox(shapes), "key"))
    assert {(path.split("/")[-1], decays) for path, decays in matched.items()} == {
        ("kernel", True),
        ("embedding", True),
        ("bias", False),
        ("scale", False),
    }


def test_layer_decay_factors_from_the_heads_to_the_embedding():
    unrolled, scanned = [by_layer(decay_factors(p, 0.5)) for p in params()]
    assert unrolled == scanned
    assert unrolled["classifier/kernel"] == 1 and unrolled["embed/embedding"] == 0.5**4
    assert [unrolled[f"stack/layer_{i}/mlp/kernel"] for i in range(3)] == [0.125, 0.25, 0.5]


@pytest.mark.parametrize(
    "family, fields, exponents",
    [
        (vit, dict(patch=4, n_layers=2, registers=1), dict(patch=3, class_token=3, registers=3)),
        (vit, dict(patch=4, n_layers=2), {"position": 3, "norm": 0, "head": 0}),
        (
            resnet,
            dict(units=(1, 2), stem="small"),
            dict(stem=4, stage_1_unit_1=3, stage_2_unit_1=2, stage_2_unit_2=1, head=0),
        ),
        (
            convnet,
            dict(filters=(4, 0, 4), hidden=(4,), norm="batchnorm"),
            dict(conv_1=3, norm_1=3, conv_2=2, norm_2=2, hidden_1=1, head=0),
        ),
    ],
)
def test_layer_decay_of_models_of_images(family, fields, exponents):
    """The number of layers above each module."""
    small = dict(d_model=8, n_heads=1) if family is vit else {}
    small |= dict(width=8) if family is resnet else {}
    model = family.Model(family.Config(image_size=8, **fields, **small), 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    factors = named_leaves(decay_factors(unbox(shapes), 0.5))
    for module, exponent in exponents.items():
        own = [f for name, f in factors.items() if name.split("/")[0] == module]
        assert own and np.all(np.array(own) == 0.5**exponent), module


def test_layer_decay_of_a_model_without_layers():
    with pytest.raises(UserError, match="layer_decay=0.5 needs parameters of layers.*a/kernel"):
        decay_factors({"a": {"kernel": jnp.zeros(2)}}, 0.5)


def update(tree, steps=3, **options):
    """The parameters after some steps of AdamW with fixed gradients."""
    c = config.new_config()
    c.optim.update({**dict(learning_rate=0.1, weight_decay=0.1, clip_norm=0.5), **options})
    tx = optim.make(c.optim, 10, tree)

    @jax.jit
    def updated(tree):
        state = tx.init(tree)
        gradients = jax.tree.map(lambda x: jnp.sin(9 * x), tree)
        for _ in range(steps):
            updates, state = tx.update(gradients, state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree

    return updated(tree)


@pytest.mark.parametrize(
    "options",
    [
        dict(freeze="embed|layer_0/"),
        pytest.param(dict(freeze="stack"), marks=pytest.mark.slow),
        pytest.param(dict(layer_decay=0.5), marks=pytest.mark.slow),
        dict(layer_decay=0.7, freeze="layer_1/mlp"),
        dict(name="lamb", freeze="layer_[02]/"),
    ],
)
def test_both_forms_train_equally(options):
    unrolled, scanned = params()
    got = update(scanned, **options)
    got = {**got, "stack": unstack_layers(got["stack"])}
    want = update(unrolled, **options)
    for name, x in named_leaves(want).items():
        np.testing.assert_allclose(named_leaves(got)[name], x, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "sgd"])  # Adam would hide a factor of all gradients
def test_frozen_layers_do_not_change_and_do_not_count_in_the_norm(name):
    _, scanned = params()
    kernel = lambda tree: np.asarray(tree["stack"]["layers"]["mlp"]["kernel"])
    new = update(scanned, name=name, freeze="embed|norm|classifier|layer_[01]/")
    np.testing.assert_array_equal(kernel(new)[:2], kernel(scanned)[:2])
    assert (kernel(new)[2] != kernel(scanned)[2]).all()
    alone = update(
        {"stack": {"layer_2": {"mlp": {"kernel": scanned["stack"]["layers"]["mlp"]["kernel"][2]}}}},
        name=name,
    )  # clipping sees nothing else
    np.testing.assert_allclose(
        kernel(new)[2], alone["stack"]["layer_2"]["mlp"]["kernel"], rtol=1e-6
    )


def test_layer_decay_scales_the_step():
    _, scanned = params()
    moved = [
        update(scanned, steps=1, layer_decay=d, weight_decay=0.0)["embed"]["embedding"]
        - scanned["embed"]["embedding"]
        for d in (1.0, 0.5)
    ]
    np.testing.assert_allclose(moved[1], moved[0] / 16, rtol=1e-4)


def test_invalid_patterns_are_refused():
    _, scanned = params()
    with pytest.raises(UserError, match="nothing would be trained"):
        update(scanned, freeze=".")
    with pytest.raises(UserError, match="matches no parameter"):
        update(scanned, freeze="layer_7/")
    with pytest.raises(UserError, match="matches no parameter"):
        update(scanned, decay_params="w$")
    update(scanned, steps=1, decay_params="w$", weight_decay=0.0)  # decays nothing anyway
    with pytest.raises(UserError, match="only some layers"):
        update(scanned, decay_params="layer_1/mlp")


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_stacks_of_different_depths_are_optimized_like_separate_layers(name):
    c = config.new_config().optim
    c.name = name
    depths = {"encoder": 2, "decoder": 3}
    layer = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    scanned = {side: {"layers": {"kernel": layer[:n]}} for side, n in depths.items()}
    alone = {f"{side}_{i}": {"kernel": layer[i]} for side, n in depths.items() for i in range(n)}

    def update(params):
        tx = optim.make(c, 10, params)
        return tx.update(params, tx.init(params), params)[0]

    ours, expected = update(scanned), update(alone)
    for side, n in depths.items():
        kernels = [expected[f"{side}_{i}"]["kernel"] for i in range(n)]
        np.testing.assert_allclose(ours[side]["layers"]["kernel"], kernels, rtol=1e-5)
