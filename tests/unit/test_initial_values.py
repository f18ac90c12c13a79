"""Initial values of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers import conv, recurrent
from bigjax.layers import params as params_lib
from bigjax.layers.params import unbox
from bigjax.models import bert, gpt, t5
from bigjax.train.state import make_init
from bigjax.trees import named_leaves

SIZES = dict(vocab_size=200, max_len=80, d_model=64, n_layers=8, n_heads=4)
MODELS = {
    "gpt": gpt.Model(gpt.Config(**SIZES, activation="swiglu", tie_embeddings=False)),
    "bert": bert.Model(bert.Config(**SIZES), bert.HEADS, n_labels=50),
}
# GPT-2 divides the standard deviation of the residual branches' outputs by the square root of their
# number, two per layer.
RESIDUAL = {"gpt": 0.02 / 4, "bert": 0.02}


@pytest.mark.parametrize("name", MODELS)
def test_standard_deviations_of_kernels_and_embeddings(name):
    init = lambda key: unbox(MODELS[name].init(key, jnp.zeros((1, 1), int))["params"])
    params = named_leaves(jax.device_get(jax.jit(init)(jax.random.key(0))))
    for path, x in params.items():
        kind = path.split("/")[-1]
        if kind not in ("kernel", "embedding"):
            assert (x == (kind == "scale")).all(), path
            continue
        residual = path.endswith(("attention/out/kernel", "mlp/down/kernel"))
        want = RESIDUAL[name] if residual else 0.02
        assert x.std() == pytest.approx(want, rel=4 / x.size**0.5), path
        assert abs(x.mean()) < 5 * want / x.size**0.5, path
        if "/layers/" in path:
            assert not (x[0] == x[1]).any(), path  # no two layers start equal
    assert sum(path.endswith(("out/kernel", "down/kernel")) for path in params) == 2


ENCODER_DECODERS = {
    "t5": dict(tie_embeddings=False),
    "t5 1.1": dict(tie_embeddings=False, activation="geglu", scale_logits=False),
    "2017": dict(position="learned", scale_scores=True, scale_embeddings=True, scale_logits=False),
}


def encoder_decoder(name):
    sizes = dict(SIZES, n_layers=4, d_ff=100, relative_buckets=32, head_dim=9)
    return t5.Model(t5.Config(**{**sizes, **ENCODER_DECODERS[name]}))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_standard_deviations_of_an_encoder_decoder(name):
    """As in the code of T5's authors: queries are smaller where scores are not scaled."""
    model, one = encoder_decoder(name), jnp.zeros((1, 1), int)
    init = lambda key: unbox(model.init(key, one, one)["params"])
    params = named_leaves(jax.device_get(jax.jit(init)(jax.random.key(0))))
    query = 64**-0.5 if name == "2017" else (64 * 9) ** -0.5
    # Where embeddings are multiplied by sqrt(d_model), they are of size 1 then.
    embedding = 64**-0.5 if name == "2017" else 1.0
    wanted = {
        "embed/embedding": embedding,
        "position/embedding": 0.02,
        "relative/embedding": 64**-0.5,
        "query/kernel": query,
        "key/kernel": 64**-0.5,
        "value/kernel": 64**-0.5,
        "out/kernel": 36**-0.5,
        "down/kernel": 100**-0.5,
        "up/kernel": 64**-0.5,
        "gate/kernel": 64**-0.5,
        "head/kernel": 64**-0.5,
    }
    used = set()
    for path, x in params.items():
        last = "/".join(path.split("/")[-2:])
        if last not in wanted:
            assert (x == 1).all(), path
            continue
        used.add(last)
        assert x.std() == pytest.approx(wanted[last], rel=5 / x.size**0.5), path
        if "/layers/" in path:
            assert not (x[0] == x[1]).any(), path
    assert len(used) == {"t5": 9, "t5 1.1": 10, "2017": 8}[name]


OTHERS = {
    "gru": (recurrent.Recurrent("gru", 4, bidirectional=True), (jnp.zeros((1, 2, 3)),)),
    "conv": (conv.Conv(4, 2), (jnp.zeros((1, 2, 3)),)),
    "t5": (encoder_decoder("t5 1.1"), (jnp.zeros((1, 1), int),) * 2),
}


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_every_weight_is_read_through_params_weight(monkeypatch, name):
    """So that another form of the weights (LoRA, quantised) has one place."""
    model, inputs = OTHERS.get(name) or (MODELS[name], (jnp.zeros((1, 1), int),))
    declare, read = params_lib.param, set()  # other modules have imported `param` by its name

    def recorded(module, leaf, *rest):
        read.add("/".join([*module.path, leaf]))
        return declare(module, leaf, *rest)

    monkeypatch.setattr(params_lib, "param", recorded)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]
    weights = {path for path in named_leaves(shapes) if path.endswith(("kernel", "embedding"))}
    assert weights and weights <= read


def test_the_seed_decides_the_initial_values():
    class Task:
        init = staticmethod(lambda rng: {"params": {"w": jax.random.normal(rng, 3)}})

    tx = type("", (), {"init": staticmethod(lambda params: ())})
    a, b, c = (make_init(Task, tx.init, seed, True)() for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.params["w"], b.params["w"])
    np.testing.assert_array_equal(a.ema["params"]["w"], a.params["w"])
    assert not (a.params["w"] == c.params["w"]).any()
