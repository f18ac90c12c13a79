"""Dropout: its rate, its scale, where it is applied, and that no two masks share a key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, tasks
from bigjax.layers import kernels
from bigjax.layers.basic import dropout
from bigjax.layers.mask import Causal, Full
from bigjax.models import bert, gpt, t5
from bigjax.projects.seqgan import headline_model as headline
from bigjax.projects.seqgan import model as seqgan
from tests import helpers
from tests.keys import Draws

B, T, V = 2, 6, 11
SIZES = dict(vocab_size=V, max_len=T, d_model=8, n_heads=2)


@pytest.fixture
def draws(monkeypatch):
    return Draws(monkeypatch)


# --- The numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_dropout_drops_its_rate_and_scales_the_rest(rate):
    x = jnp.linspace(1, 2, 40_000)
    y = dropout(x, rate, jax.random.key(0))
    x, y = np.asarray(x), np.asarray(y)
    kept = y != 0
    assert (~kept).mean() == pytest.approx(rate, abs=0.01)  # 4 standard deviations
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("rate, causal", [(0.1, False), (0.3, True)])
def test_attention_drops_its_rate_of_the_weights_and_scales_the_rest(rate, causal):
    """With one-hot vectors as values the output is the attention weights."""
    n, H, S = 40, 2, 16
    q, k = jax.random.normal(jax.random.key(1), (2, n, S, H, S))
    v = jnp.broadcast_to(jnp.eye(S)[:, None], (n, S, H, S))
    mask = Causal() if causal else Full()
    attend = jax.jit(functools.partial(kernels.attend, mask=mask, dropout=rate))
    want, got = (np.asarray(attend(q, k, v, rng=rng)) for rng in (None, jax.random.key(0)))
    seen, kept = want > 1e-6, got != 0
    assert (~kept)[seen].mean() == pytest.approx(rate, abs=0.015)
    np.testing.assert_allclose(got[kept], want[kept] / (1 - rate), rtol=1e-4)
    assert not kept[want == 0].any()  # nothing later is seen


# --- The keys ---------------------------------------------------------------------------------

LSTM = dict(generator="lstm", discriminator_d_model=8, filter_widths=(1, 2), filters=(3, 3))
HEADLINE = headline.Config(
    **SIZES, article_len=8, dropout=0.1, click_dropout=0.3, discriminator_d_model=8,
    filter_widths=(1, 2), filters=(4, 4),
)  # fmt: skip
GIVEN = dict(
    source=jnp.ones((B, 8), int),
    source_types=jnp.zeros((B, 8), int),
    source_mask=jnp.ones((B, 8)),
    clicks=jnp.ones(B, int),
    hot=jnp.ones((B, 8), int),
    hot_mask=jnp.ones((B, 8)),
)
MASK = jnp.ones((B, T), bool)
# name: (module, arguments, {fraction that is kept: number of draws}), mostly of two layers
CASES = {
    "gpt": (gpt.Model(gpt.Config(**SIZES, n_layers=2, dropout=0.1)), (), {0.9: 1 + 2 * 2}),
    "gpt, unrolled and parallel": (
        gpt.Model(gpt.Config(**SIZES, n_layers=1, dropout=0.1, scan=False, parallel_block=True)),
        (),
        {0.9: 1 + 2},
    ),
    "bert": (
        bert.Model(
            bert.Config(**SIZES, n_layers=2, dropout=0.1, attention_dropout=0.3), ("classifier",)
        ),
        (),
        {0.9: 1 + 2 * 2 + 1, 0.7: 2},
    ),
    "t5": (
        t5.Model(
            t5.Config(**SIZES, n_layers=2, dropout=0.1, attention_dropout=0.3, mlp_dropout=0.2)
        ),
        (jnp.zeros((B, 4), int),),
        {0.9: 2 + 2 * 2 + 3 * 2 + 2, 0.7: 2 + 2 * 2, 0.8: 2 + 2},
    ),
    "seqgan's generator": (
        seqgan.Generator(seqgan.Config(**SIZES, **LSTM, dropout=0.1)),
        (),
        {0.9: 2},
    ),
    "seqgan's discriminator": (
        seqgan.Discriminator(seqgan.Config(**SIZES, **LSTM, discriminator_dropout=0.3)),
        (MASK,),
        {0.7: 1},
    ),
    "headline's generator": (headline.Generator(HEADLINE), (GIVEN,), {0.9: 4, 0.7: 1}),
    "headline's discriminator": (headline.Discriminator(HEADLINE), (MASK, GIVEN), {0.75: 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_dropout_has_its_rate_and_its_own_key(draws, case):
    model, arguments, want = CASES[case]
    tokens = jnp.zeros((B, T), int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, *arguments)
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    apply = jax.jit(lambda v, rng: model.apply(v, tokens, *arguments, rng=rng))
    jax.block_until_ready(apply(variables, jax.random.key(1)))
    assert draws.shares() == want
    draws.check_distinct(sum(want.values()))


# --- When -------------------------------------------------------------------------------------

ROW, ONE = (B, T), (B, 1)
LABELLED = dict(tokens=ROW, types=ROW, segment_ids=ROW, positions=ROW, first=ONE, example=ONE)
TASKS = {
    "causal_lm": dict(inputs=ROW, targets=ROW, target_bytes=(B,)),
    "mlm_nsp": dict(
        tokens=ROW,
        types=ROW,
        segment_ids=ROW,
        masked_positions=(B, 3),
        targets=(B, 3),
        next_label=ONE,
    ),
    "seq2seq": dict(
        source=ROW,
        source_segment_ids=ROW,
        source_positions=ROW,
        targets=ROW,
        segment_ids=ROW,
        positions=ROW,
    ),
    "classify": LABELLED | dict(label=ONE),  # as all with labels
}


@pytest.mark.parametrize("name", TASKS)
def test_dropout_only_applies_in_training(draws, name):
    c = config.new_config()
    model = dict(causal_lm="gpt", seq2seq="t5").get(name, "bert")
    c.model = dict(name=model, **SIZES, n_layers=1, dropout=0.1)
    c.task = dict(name=name, **(dict(labels=("a", "b")) if name == "classify" else {}))
    c.data = dict(
        name=dict(classify="labelled", seq2seq="text_to_text").get(name, "text"), seq_len=T
    )
    if name == "seq2seq":
        c.data.target_len = T
    task = tasks.build(helpers.filled(c))
    weights = dict(causal_lm=ROW, seq2seq=ROW, mlm_nsp=(B, 3)).get(name, ONE)
    batch = tasks.array_shapes(TASKS[name], dict(weights=weights, next_weight=ONE))
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]

    def n_draws(train):
        draws.clear()
        jax.eval_shape(
            lambda p, b: task.loss(p, {}, None, b, jax.random.key(0), train)[0], params, batch
        )
        return draws.traced

    assert n_draws(False) == 0 and n_draws(True) >= 3
