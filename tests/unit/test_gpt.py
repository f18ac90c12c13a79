"""The GPT family: sizes, causality, isolation, scan, remat, cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import trees
from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.mask import Causal, Window
from bigjax.models import gpt
from bigjax.parallel import mesh as mesh_lib

# Published numbers of parameters, exact where the weights are public.
EXACT = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma3-1b": 999_885_952,
    "phi3-mini": 3_821_079_552,
    "phi4": 14_659_507_200,
    "olmo2-7b": 7_298_617_344,
    "pythia-160m": 162_322_944,
    "pythia-1.4b": 1_414_647_808,
}
# GPT-3: table D.1 (millions); PaLM: table 1 (billions); Gemma 3: table 1, with its embeddings.
ROUNDED = {
    "gemma3-4b": (675 + 3209, 1e6),
    "gpt3-125m": (125, 1e6),
    "gpt3-350m": (356, 1e6),
    "gpt3-760m": (760, 1e6),
    "gpt3-1.3b": (1320, 1e6),
    "gpt3-2.7b": (2650, 1e6),
    "gpt3-6.7b": (6660, 1e6),
    "gpt3-13b": (12850, 1e6),
    "gpt3-175b": (174600, 1e6),
    "palm-8b": (8.63, 1e9),
    "palm-62b": (62.50, 1e9),
    "palm-540b": (540.35, 1e9),
}


def n_parameters(preset):
    model = gpt.Model(gpt.Config(**gpt.PRESETS[preset]))
    return trees.count(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int)))


def test_every_preset_has_a_published_size():
    assert set(EXACT) | set(ROUNDED) == set(gpt.PRESETS)


@pytest.mark.parametrize("preset", gpt.PRESETS)
def test_parameter_counts(preset):
    n = n_parameters(preset)
    if preset in EXACT:
        assert n == EXACT[preset]
    else:
        value, unit = ROUNDED[preset]
        assert abs(n / unit / value - 1) < 0.005


STYLES = {
    "gpt2": {},
    "llama": dict(
        position="rotary",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tie_embeddings=False,
        n_kv_heads=2,
    ),
    "palm": dict(
        position="rotary",
        activation="swiglu",
        bias=False,
        n_kv_heads=1,
        head_dim=6,
        parallel_block=True,
    ),
    "neox": dict(position="rotary", rope_share=0.5, parallel_block=True, parallel_norm=True),
    "gemma": dict(
        n_layers=5,  # a period, and two layers after it
        position="rotary",
        window=4,
        global_every=3,
        local_rope_theta=100.0,
        rope_scaling="linear",
        rope_factor=2.0,
        norm="rmsnorm",
        norm_place="both",
        norm_offset=True,
        qk_norm="head",
        activation="geglu",
        bias=False,
        qkv_bias=True,
        query_scale=0.4,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embed_scale=True,
        n_kv_heads=2,
    ),
}


@pytest.fixture(scope="module", params=STYLES)
def model(request):
    """(config, params) of a small model of each style, with weights large enough to matter."""
    c = gpt.Config(
        vocab_size=31,
        max_len=32,
        d_model=16,
        n_heads=4,
        scan=False,
        **{"n_layers": 2, **STYLES[request.param]},
    )
    scanned = gpt.Model(dataclasses.replace(c, scan=True))

    @jax.jit
    def init(key):
        params = params_lib.unbox(scanned.init(key, jnp.zeros((1, 1), int))["params"])
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)

    return c, init(jax.random.key(0))


def unrolled(params):
    return {**params, "stack": params_lib.unstack_layers(params["stack"])}


def test_scanned_unrolled_and_rematerialised_forms_are_equal(model):
    c, params = model
    c = dataclasses.replace(c, dropout=0.2)
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, c.vocab_size)

    def loss(params, c):
        logits = gpt.Model(c).apply({"params": params}, tokens, rng=jax.random.key(3)).logits
        return jax.nn.log_softmax(logits)[..., 0].mean()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, want_grad = run(unrolled(params), c)
    for remat in ("none", "dots", "query,mlp:host") if c.bias else ("full", "attention"):
        got, grad = run(params, dataclasses.replace(c, scan=True, remat=remat))
        np.testing.assert_allclose(got, want, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(unrolled(grad)), jax.tree.leaves(want_grad)):
            np.testing.assert_allclose(a, b, atol=1e-6)
    stacked = params_lib.stack_layers(unrolled(params)["stack"], len(c.blocks))
    jax.tree.map(np.testing.assert_array_equal, stacked, params["stack"])


def input_gradient(c, params, position, segments=None):
    """|d logits[position] / d embedding of each token|, [T]."""
    tokens = jnp.arange(10)[None] % c.vocab_size

    def logit(embedding):
        p = {**params, "embed": {"embedding": embedding}}
        out = gpt.Model(dataclasses.replace(c, tie_embeddings=False)).apply(
            {
                "params": p
                | (
                    {}
                    if "head" in p
                    else {
                        "head": {
                            "kernel": jnp.ones((c.d_model, c.vocab_size)) * jnp.arange(c.vocab_size)
                        }
                    }
                )
            },
            tokens,
            segments_BT=segments,
        )
        return (out.logits[0, position] * jnp.arange(c.vocab_size)).sum()

    return jnp.abs(jax.jit(jax.grad(logit))(params["embed"]["embedding"])).sum(-1)[:10]


def test_no_token_sees_a_later_one(model):
    c, params = model
    g = input_gradient(c, unrolled(params), position=5)
    assert (g[:6] > 0).all() and (g[6:] == 0).all()


def test_segments_isolate_packed_documents(model):
    c, params = model
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 3]])
    g = input_gradient(c, unrolled(params), position=5, segments=segments)
    assert (g[3:6] > 0).all() and (g[:3] == 0).all() and (g[6:] == 0).all()


def test_cached_logits_equal_uncached_ones(model):
    """For rows of different lengths: keys written after the end of a row are overwritten."""
    c, params = model
    variables = {"params": unrolled(params)}
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, c.vocab_size)
    want = jax.jit(gpt.Model(c).apply)(variables, tokens).logits
    decoder = gpt.decoder(c)
    ids = [tokens[0, :8].tolist(), tokens[1, :3].tolist()]
    context, first = decoder.context(ids)
    np.testing.assert_array_equal(first, [tokens[0, 7], tokens[1, 2]])
    state = jax.jit(decoder.begin, static_argnums=2)(variables, context, 15)
    step = jax.jit(decoder.step)
    for t in range(4):
        at = jnp.array([7 + t, 2 + t])
        logits, state = step(variables, state, tokens[jnp.arange(2), at])
        np.testing.assert_allclose(logits, want[jnp.arange(2), at], atol=2e-5)
    assert gpt.decoder(dataclasses.replace(c)) is decoder


def test_flops_per_token_are_six_per_weight_plus_attention():
    c = gpt.Config(**gpt.PRESETS["gpt2-124m"])
    kernels = n_parameters("gpt2-124m") - 1024 * 768  # nearly all weights except positions
    attention = 12 * 12 * 768 * 1024 / 2
    assert gpt.flops_per_token(c, 1024) == pytest.approx(6 * kernels + attention, rel=2e-3)


def test_kinds_of_layers_and_the_keys_that_they_see():
    kinds = lambda **options: [b.local for b in gpt.Config(**options).blocks]
    assert kinds() == [False] and kinds(window=4) == [True]
    assert kinds(window=4, global_every=3) == [True, True, False]
    c = gpt.Config(window=4, global_every=3, n_layers=8)
    assert (c.n_local, dataclasses.replace(c, global_every=0).n_local) == (6, 8)
    assert gpt.Config().n_local == 0 and c.mask(True) == Causal() & Window(3)
    assert c.mask(True, 4) == c.mask(False) == Causal()  # a window that a row does not exceed
    seen = 6 * 3.4 + 2 * 5.5  # of 10 tokens: 1, 2, 3, 4, 4, ...; 1, 2, 3, ..., 10
    plain = gpt.flops_per_token(gpt.Config(n_layers=8), 10)
    assert gpt.flops_per_token(c, 10) == plain + 12 * 768 * (seen - 8 * 5.5)


def test_only_the_window_is_visible():
    c = gpt.Config(vocab_size=31, max_len=32, d_model=16, n_layers=2, n_heads=4, window=3)
    c = dataclasses.replace(c, scan=False)
    params = params_lib.unbox(gpt.Model(c).init(jax.random.key(0), jnp.zeros((1, 1), int)))[
        "params"
    ]
    g = input_gradient(c, params, position=8)
    assert (g[4:9] > 0).all() and (g[:4] == 0).all()  # two tokens back in each of two layers


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(qkv_bias=True), "qkv_bias is True, which needs model.bias=False"),
        (dict(parallel_norm=True), "needs model.parallel_block=True"),
        (dict(parallel_block=True, norm_place="post"), "needs model.norm_place='pre'"),
        (dict(global_every=2), "global_every is 2, which needs model.window above 0"),
        (dict(local_rope_theta=1e4, position="rotary"), "needs model.window above 0"),
        (dict(rope_scaling="linear"), "needs model.position='rotary'"),
        (dict(rope_share=0.5), "rope_share is 0.5, which needs model.position='rotary'"),
        (dict(rope_share=0.05, position="rotary"), "are 3 dimensions; .* even number"),
        (dict(rope_scaling="llama3", position="rotary"), "needs model.rope_original_len"),
        (
            dict(
                rope_scaling="longrope",
                position="rotary",
                rope_original_len=8,
                rope_short=(1.0,) * 32,
                rope_long=(1.0,) * 31,
            ),
            "rope_long has 31 numbers; it needs one for each pair .*: 32",
        ),
        (
            dict(
                rope_scaling="llama3",
                position="rotary",
                rope_original_len=8,
                rope_low_factor=4.0,
            ),
            "rope_low_factor=4.0 must be less than",
        ),
        (dict(norm_place="middle"), "norm_place is 'middle'; allowed: pre, post, both"),
        (dict(qk_norm="all"), "qk_norm is 'all'"),
        (dict(rope_scaling="yarn", position="rotary"), "rope_scaling is 'yarn'; allowed"),
        (dict(rope_share=0.0), "in .0, 1."),
        (dict(window=-1), "at least 0"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        gpt.Config(**options)


def test_rows_beyond_the_first_training_of_longrope_are_not_decoded():
    """Their first tokens would need other frequencies than the later ones."""
    rope = dict(rope_scaling="longrope", rope_short=(1.0,) * 32, rope_long=(2.0,) * 32)
    c = gpt.Config(position="rotary", rope_original_len=64, **rope)
    decoder = gpt.decoder(c)
    assert (decoder.max_len, decoder.limit) == (64, "model.rope_original_len")
    short = gpt.decoder(dataclasses.replace(c, max_len=50))
    assert (short.max_len, short.limit) == (50, "model.max_len")


def test_a_kernel_without_soft_caps_is_refused_before_training():
    c = gpt.Config(attention="whole", attention_softcap=50.0)
    with pytest.raises(UserError, match="'whole' does not support a soft cap of the scores"):
        gpt.check_mesh(c, {"data.seq_len": 64}, mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]))
    gpt.check_mesh(
        dataclasses.replace(c, attention="splash"),
        {"data.seq_len": 128},
        mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]),
    )
