"""Parameter-efficient tuning: equal to the base at step 0, merged, and refused options."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import modules, peft, tasks
from bigjax.errors import UserError
from bigjax.layers import params as layers
from bigjax.layers import quantised
from bigjax.layers.params import unbox
from bigjax.models import gpt
from bigjax.parallel import mesh as mesh_lib
from bigjax.peft import lora
from bigjax.train import needed
from bigjax.trees import count, named_leaves
from tests import helpers
from tests.helpers import TINY, TINY_BERT, TINY_SEQ2SEQ

LABELS = {"task.labels": ("a", "b")}
FAMILIES = {
    "gpt": (TINY, {}),
    "gpt, unrolled": (TINY, {"model.scan": False}),
    "gpt, untied, remat": (TINY, {"model.tie_embeddings": False, "model.remat": "dots"}),
    "bert": (f"{TINY_BERT}:labelled", LABELS),
    "t5": (TINY_SEQ2SEQ, {"model.n_layers": 1}),
    "whisper": (f"{TINY_SEQ2SEQ}:whisper", {}),
    "vit": ("configs/vit/digits.py:tiny", {"task.labels": tuple("0123456789")}),
}


def config(family="gpt", **values):
    """The config of a family with other values, by dotted key with '__' for dots."""
    file, own = FAMILIES[family]
    c = helpers.load_config(file)
    with c.unlocked():
        for key, value in {**own, **{k.replace("__", "."): v for k, v in values.items()}}.items():
            section, name = key.split(".")
            c[section][name] = value
    return helpers.filled(c)


def tuned(c, name="lora", **options):
    """The task of a config with config.peft."""
    return tasks.build(_config_of(c, name, **options))


def variables_of(plain, task, noise=0.0):
    """(variables of the base, {'base': ...}, the method's parameters on it, with noise)."""
    v = drawn(jax.eval_shape(plain.init, jax.random.key(0)))
    frozen = {"base": {"params": v["params"]}}
    params = jax.jit(task.init)(jax.random.key(1))["params"]
    own = named_leaves(params)
    params = peft.joined(params, peft.parts(v["params"], own.__contains__))
    if task.first:
        params = task.first(params, frozen)
    return v, frozen, jax.tree.map(lambda x, y: x + noise * y, params, drawn(params, 1.0))


def drawn(shapes, std=0.1):
    """Random numbers of these shapes: quicker than the compiled init of a model."""
    rng = np.random.default_rng(0)
    numbers = lambda x: jnp.asarray(std * rng.normal(size=x.shape), jnp.float32)
    return jax.tree.map(numbers, shapes)


def batch_of(c, task):
    """A batch of small numbers."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 2, x.shape).astype(x.dtype)
        if x.dtype != np.float32
        else rng.random(x.shape, np.float32)
        for name, x in task.batch_shapes(c.train.batch_size, 0).items()
    }


def loss(task, params, extras, frozen, batch, train=False):
    run = jax.jit(lambda *a: task.loss(*a, jax.random.key(3), train)[0][0])
    return float(run(params, extras, frozen, batch))


SLOW = ("whisper", "gpt, unrolled", "vit")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAMILIES]
)
def test_lora_is_the_base_at_step_0_and_the_merged_model_later(family):
    c = config(family)
    chosen = "head|query|out" if family == "gpt, untied, remat" else "attention/(query|value)$"
    plain, task = tasks.build(c), tuned(c, rank=2, targets=chosen)
    v, frozen, params = variables_of(plain, task)
    extras = {k: x for k, x in v.items() if k != "params"}
    batch = batch_of(c, plain)
    want = loss(plain, v["params"], extras, {}, batch)
    assert loss(task, params, extras, frozen, batch) == want
    _, _, params = variables_of(plain, task, noise=0.1)
    merged = task.variables(params, extras, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(v)
    got = loss(task, params, extras, frozen, batch)
    assert abs(got - want) > 1e-4 * abs(want)
    np.testing.assert_allclose(loss(plain, merged["params"], extras, {}, batch), got, rtol=1e-5)


def test_only_the_factors_are_trained_and_their_gradients_flow():
    c = config()
    plain, task = tasks.build(c), tuned(c, rank=2, rank_stabilized=True)
    v, frozen, params = variables_of(plain, task, noise=0.1)
    assert all("lora" in name for name in named_leaves(params))
    L, d, r = c.model.n_layers, c.model.d_model, 2
    assert count(params) == L * 2 * 2 * d * r
    axes = named_leaves(jax.tree.map(str, task.axes["params"], is_leaf=lambda x: type(x) is tuple))
    query = "stack/layers/attention/query"
    assert axes[f"{query}/lora_a/kernel"] == "('layers', 'embed', None)"
    assert axes[f"{query}/lora_b/kernel"] == "('layers', None, 'heads', 'head_dim')"
    batch = batch_of(c, plain)
    f = lambda p: task.loss(p, {}, frozen, batch, jax.random.key(0), True)[0][0]
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(jax.jit(jax.grad(f))(params)))
    options = modules.options(_config_of(c, rank=2, rank_stabilized=True), "peft")
    assert options.scale == pytest.approx(16 / 2**0.5)
    merged = lora.merge(peft.joined(v["params"], params), options)
    again = lora.unmerge(merged, params, options)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(v["params"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    mesh = mesh_lib.make_mesh({}, jax.devices()[:1])
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    every = jax.tree.map(lambda _: True, shapes)
    assert 0.6 < needed.share(_config_of(c, rank=2), mesh, shapes, every) < 0.75


def _config_of(c, name="lora", **options):
    c = c.copy_and_resolve_references()
    with c.unlocked():
        c.peft = dict(name=name, base="a folder", **options)
    return helpers.filled(c)


def test_dropout_differs_by_layer_and_not_by_scan():
    c = gpt.Config(vocab_size=8, max_len=4, d_model=8, n_layers=3, n_heads=2)
    method, keys = lora.build(lora.Config(rank=2, dropout=0.5)), []
    tokens = jnp.zeros((1, 4), int)

    def outputs(c, variables):
        model = gpt.Model(c)  # a function of its own: a trace is kept, whatever intercepts it
        with peft.intercepted(method, jax.random.key(1)):
            return jax.jit(lambda v: model.apply(v, tokens).logits)(variables)

    with peft.intercepted(method):
        shapes = jax.eval_shape(lambda key: gpt.Model(c).init(key, tokens), jax.random.key(0))
    v = drawn(unbox(shapes), 0.5)
    unrolled = dataclasses.replace(c, scan=False)
    np.testing.assert_allclose(outputs(c, v), outputs(unrolled, layers.unrolled(v)), atol=1e-5)

    def layer(layer):
        if layer.path.endswith("query"):
            keys.append(layer.rng)
        return layer.run()

    with peft.intercepted(peft.Method(layer=layer), jax.random.key(1)):
        gpt.Model(unrolled).apply(layers.unrolled(v), tokens)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def gradients(task, params, extras, frozen, batch):
    f = lambda p: task.loss(p, extras, frozen, batch, jax.random.key(0), True)[0][0]
    return named_leaves(jax.jit(jax.grad(f))(params))


@pytest.mark.parametrize("family", ["gpt", pytest.param("bert", marks=pytest.mark.slow)])
def test_dora_and_bitfit(family):
    c = config(family)
    plain, batch = tasks.build(c), batch_of(c, tasks.build(c))
    for options in (dict(rank=2, dora=True), dict(name="bitfit")):
        task = tuned(c, **options)
        v, frozen, params = variables_of(plain, task)
        want = loss(plain, v["params"], {}, {}, batch)
        assert loss(task, params, {}, frozen, batch) == pytest.approx(want, rel=1e-6)
        _, _, params = variables_of(plain, task, noise=0.05)
        got = loss(task, params, {}, frozen, batch)
        merged = task.variables(params, {}, frozen)["params"]
        assert jax.tree.structure(merged) == jax.tree.structure(v["params"])
        assert abs(got - want) > 1e-4 * want
        assert loss(plain, merged, {}, {}, batch) == pytest.approx(got, rel=1e-5)
        found = gradients(task, params, {}, frozen, batch) if family == "gpt" else {}
        flat = [n for n, g in found.items() if not jnp.abs(g).max() > 1e-9]
        assert [n for n in flat if "key/bias" not in n] == []  # which softmax does not see
        bitfit = options.get("name") == "bitfit"
        ends = ("bias",) if bitfit else ("lora_a/kernel", "lora_b/kernel", "lora_magnitude")
        assert all(n.endswith(ends) or "classifier" in n for n in named_leaves(params))


ADDED = {
    "adapter": dict(width=4),
    "prefix": dict(length=3, init_std=0.5),
    "prompt": dict(length=3, init_std=0.5),
}


# Each method; the other pairs are slow.
FIRST = {("gpt", "prefix"), ("bert", "prompt"), ("vit", "adapter")}


@pytest.mark.parametrize(
    "family, name",
    [
        pytest.param(f, n, marks=() if (f, n) in FIRST else pytest.mark.slow)
        for f in ("gpt", "bert", "t5", "vit")
        for n in ADDED
    ],
)
def test_added_layers_keys_and_vectors(family, name):
    c = config(family)
    if "packing" in c.data:
        c.data.packing = False
    plain, task = tasks.build(c), tuned(c, name, **ADDED[name])
    v, frozen, params = variables_of(plain, task)
    extras = {k: x for k, x in v.items() if k != "params"}
    batch = batch_of(c, plain)
    want = loss(plain, v["params"], extras, {}, batch)
    if name == "adapter":
        assert loss(task, params, extras, frozen, batch) == want
    _, _, params = variables_of(plain, task, noise=0.1)
    assert abs(loss(task, params, extras, frozen, batch) - want) > 1e-6 * abs(want)
    if family == "t5":
        for key, g in gradients(task, params, extras, frozen, batch).items():
            assert jnp.abs(g).max() > 0, key


@pytest.mark.parametrize(
    "position, name",
    [
        *(("learned", "adapter"), ("rotary", "prompt")),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                *(("rotary", "adapter"), ("rotary", "prefix")),
                *(("learned", "prefix"), ("learned", "prompt")),
            )
        ),
    ],
)
def test_a_decoder_gives_what_training_sees(name, position):
    """Also for rows of other lengths, and token by token."""
    c = config(model__position=position, model__tie_embeddings=False)
    c.data.packing = False
    plain, task = tasks.build(c), tuned(c, name, **ADDED[name])
    _, frozen, params = variables_of(plain, task, noise=0.1)
    method = task.decoder(gpt.decoder(task.model_config))
    assert method is task.decoder(gpt.decoder(task.model_config))
    tokens = jnp.array([[5, 6, 7, 8, 9], [3, 4, 5, 6, 7]])
    variables = layers.unrolled(task.variables(params, {}, frozen))
    context, first = method.context([[5, 6, 7], [3, 4]])
    state = method.begin(variables, context, 16)
    _, state = method.step(variables, state, first)
    got, _ = jax.jit(method.step)(variables, state, jnp.array([8, 5]))
    own = peft_method(c, name)
    with peft.intercepted(own):
        model = gpt.Model(dataclasses.replace(task.model_config, scan=False))
        want = model.apply(variables, tokens).logits
    np.testing.assert_allclose(got[0], want[0, 3], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1, 2], atol=1e-5)
    np.testing.assert_allclose(method.score(variables, tokens).product(), want, atol=1e-5)
    plain_logits = model.apply(variables, tokens).logits
    assert np.abs(np.asarray(plain_logits - want)).max() > 1e-3


@pytest.mark.parametrize("every", [0, 2])
def test_prompts_need_rows_that_a_sliding_window_does_not_cut(every):
    """It would hide the vectors in training, and not with a cache."""
    c = config(model__window=34, model__global_every=every)
    c.data.packing = False
    batch = batch_of(c, tasks.build(c))
    assert c.data.seq_len == 32

    def trace(name, length):
        task = tuned(c, name, length=length)
        parts = task.init(jax.random.key(0))["params"], {}, {"base": plain}
        jax.eval_shape(lambda *a: task.loss(*a, jax.random.key(3), True), *parts, batch)

    plain = jax.eval_shape(tasks.build(c).init, jax.random.key(0))
    trace("prompt", 2)
    with pytest.raises(UserError, match=r"the mask .*Window\(before=33.* hides the vectors"):
        trace("prompt", 3)
    trace("prefix", 3)


@pytest.mark.parametrize("kind, bits, error", [("int8", 8, 0.006), ("nf4", 4, 0.15)])
def test_a_quantised_kernel(kind, bits, error):
    x = drawn(jax.ShapeDtypeStruct((3, 4, 32, 6, 8), jnp.float32), 1.0)
    q = quantised.quantise(x, kind, 2, stacked=True)
    assert q.values.nbytes * 8 == x.size * bits
    again = q.dequantised("float32")
    assert jnp.abs(again - x).max() <= error * jnp.abs(x).max()
    once = quantised.quantise(again, kind, 2, stacked=True).dequantised("float32")
    np.testing.assert_allclose(once, again, atol=1e-6)
    one = quantised.quantise(x[1], kind, 2, stacked=False).dequantised("float32")
    np.testing.assert_array_equal(one, again[1])
    if kind == "nf4":  # each output has its own scale for each block of 64 inputs
        blocks = again.reshape(3, 2, 64, 6, 8)
        shares = np.unique(blocks / jnp.abs(blocks).max(2, keepdims=True))
        far = np.abs(shares[:, None] - quantised.NF4)
        assert far.min(1).max() < 1e-6 and far.min(0).max() < 1e-6  # each value, and no other
    y = jax.random.normal(jax.random.key(0), (5, 4, 32))
    g = jax.random.normal(jax.random.key(1), (5, 6, 8))
    one = jax.tree.map(lambda a: a[1], q)
    out, vjp = jax.vjp(lambda y: quantised.product(y, one, 2, "float32"), y)
    np.testing.assert_allclose(out, jnp.tensordot(y, again[1], 2), rtol=1e-4, atol=1e-3)
    want = jnp.tensordot(g, again[1], [[1, 2], [2, 3]])
    np.testing.assert_allclose(vjp(g)[0], want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "family, kind",
    [
        ("gpt", "nf4"),
        pytest.param("gpt, unrolled", "int8", marks=pytest.mark.slow),
        pytest.param("t5", "nf4", marks=pytest.mark.slow),
        pytest.param("gpt", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_lora_on_a_base_of_fewer_bits(family, kind):
    """It computes what the same adapter does on the base that rounding left."""
    c = config(family)
    task = tuned(c, rank=2, base_dtype=kind)
    plain = tuned(c, rank=2)
    v, frozen, params = variables_of(tasks.build(c), plain, noise=0.1)
    init, _, convert = task.frozen["base"].as_read
    base = convert({"params": peft.parts(v["params"], lambda n: n not in named_leaves(params))})
    shapes = jax.eval_shape(task.frozen["base"].init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(lambda x: x.shape, shapes)
    arrays = named_leaves(base["params"])
    of = lambda kind: [n for n, x in arrays.items() if x.dtype == kind and "kernel" in n]
    names = of({"nf4": "uint8"}.get(kind, kind))
    assert any("query" in n for n in names) and any("mlp" in n for n in names)
    assert {str(x.dtype) for n, x in arrays.items() if "kernel" not in n} == {"bfloat16"}
    left = {"base": {"params": peft.plain_base(base["params"])}}
    batch = batch_of(c, task)
    want = gradients(plain, params, {}, left, batch)
    for name, g in gradients(task, params, {}, {"base": base}, batch).items():
        np.testing.assert_allclose(g, want[name], rtol=1e-3, atol=1e-4 * jnp.abs(g).max())
    merged = task.variables(params, {}, {"base": base})["params"]
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(plain.variables(params, {}, left))):
        np.testing.assert_allclose(a, b, atol=1e-6)
    sharded = named_leaves(
        jax.tree.map(str, task.frozen["base"].axes, is_leaf=lambda x: type(x) is tuple)
    )
    end = "attention/query/kernel" + "/values" * (kind != "bfloat16")
    query = next(n for n in sharded if n.endswith(end))
    assert "'embed', 'heads', 'head_dim')" in sharded[query]


def peft_method(c, name):
    c = _config_of(c, name, **ADDED[name])
    return modules.of(c, "peft").build(modules.options(c, "peft"))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(targets="querry"), "matches no dense layer.*stack/layers/attention/query"),
        (dict(targets="("), "not a regular expression"),
        (dict(rank=33), "peft.rank=33 is larger than a dimension of 'stack/layers/attention"),
        (dict(targets="embed|query"), "matches the embedding 'embed'.*tied"),
        (dict(also="nothing"), "peft.also='nothing' matches no parameter"),
        (dict(also="["), "not a regular expression"),
        (dict(name="bitfit", rank=None, targets="bais$"), "targets='bais.' matches no parameter"),
        (dict(rank=0), "rank"),
        (
            dict(base_dtype="int4"),
            "peft.base_dtype is 'int4'; allowed: float32, bfloat16, int8, nf4",
        ),
        (dict(base=""), "config.peft.base is empty"),
        (dict(name=""), "config.peft has the keys base, rank, but.*lora"),
        (dict(name="prompt", rank=None, length=2), "data.packing=False"),
        (dict(name="lorra"), "not a module of bigjax.peft.*lora"),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused(options, message):
    c = config()
    with pytest.raises(UserError, match=re.compile(message, re.S)), c.unlocked():
        c.data.packing = True
        values = {"name": "lora", "base": "a folder", "rank": 2, **options}
        c.peft = {key: x for key, x in values.items() if x is not None}
        tasks.build(helpers.filled(c))


@pytest.mark.parametrize(
    "also, trained", [("head", {"classifier"}), ("", set()), ("pooler", {"pooler"})]
)
def test_a_head_for_labels_is_trained_in_full_unless_told_otherwise(also, trained):
    shapes = jax.eval_shape(tuned(config("bert"), rank=2, also=also).init, jax.random.key(0))
    assert {n.split("/")[0] for n in named_leaves(shapes["params"])} == {"stack", *trained}


@pytest.mark.parametrize(
    "options",
    [
        dict(name="bitfit", targets="stack/layers/.*query/bias$"),
        dict(name="lora", rank=2, also="stack/layers/norm_1"),
    ],
)
def test_a_regex_sees_the_same_paths_whether_the_model_is_scanned_or_not(options):
    of = lambda family: jax.eval_shape(tuned(config(family), **options).init, jax.random.key(0))
    scanned, unrolled = (
        {peft.normal_path(n) for n in named_leaves(of(family)["params"])}
        for family in ("gpt", "gpt, unrolled")
    )
    assert scanned == unrolled
    assert any("bias" in n for n in scanned)
