"""Optimizers and schedules against their papers' formulas, written out in NumPy in float64.

The tree is tiny but has everything that `optim.make` treats differently: a scanned stack under
`layers`, tensors that decay and ones that do not, one that is zero at first. The error is
max |ours - theirs| / max |theirs| per tensor, after each of 24 steps; the bar is 2e-5.
"""

import jax
import numpy as np
import optax
import pytest

from bigjax import config as config_lib
from bigjax import modules, tasks
from bigjax.errors import UserError
from bigjax.optim import make, make_schedule, schedules
from bigjax.trees import count, named_leaves

STEPS, LAYERS, BAR = 24, 3, 2e-5
LAYER = {"mlp/kernel": (5, 7), "norm/scale": (5,)}
SHAPES = {
    "embed/embedding": (6, 5),
    "head/bias": (4,),
    **{f"stack/layer_{i}/{name}": s for i in range(LAYERS) for name, s in LAYER.items()},
}
# Matrices with at least 128 rows and columns, whose second moment Adafactor factors.
WIDE_LAYER = {
    "mlp/kernel": (128, 140),
    "query/kernel": (128, 3, 44),
    "out/kernel": (3, 44, 128),
    "norm/scale": (5,),
}
WIDE = {
    "embed/embedding": (130, 128),
    "head/bias": (4,),
    **{f"stack/layer_{i}/{name}": s for i in range(LAYERS) for name, s in WIDE_LAYER.items()},
}


def optim(**values):
    o = config_lib.new_config().optim
    o.update(
        {
            **dict(
                schedule="linear",
                warmup_steps=3,
                final_fraction=0.1,
                learning_rate=0.05,
                clip_norm=0.0,
                weight_decay=0.1,
            ),
            **values,
        }
    )
    return o


def learning_rate(o, t):
    """`linear` with warm-up, of step t from 0."""
    if t < o.warmup_steps:
        return o.learning_rate * (t + 1) / o.warmup_steps
    part = (t - o.warmup_steps) / (STEPS - 1 - o.warmup_steps)
    return o.learning_rate * (1 - 0.9 * part)


def decays(name):
    return name.endswith(("kernel", "embedding"))


def draw(shapes, seed=0):
    """Initial parameters {name: array} and the gradients of each step [{name: array}, ...]."""
    rng = np.random.default_rng(seed)
    new = lambda scale: {
        n: scale * rng.normal(size=s).astype(np.float32) for n, s in shapes.items()
    }
    start = new(np.float32(1))
    for i in range(LAYERS):  # of different sizes, to detect mixed-up layers
        for name in shapes:
            if name.startswith(f"stack/layer_{i}/"):
                start[name] *= 10.0 ** (i - 1)
    start["head/bias"][:] = 0  # like biases: LAMB's ratio is 1, Adafactor's scale the minimum
    return start, [new(np.float32(10.0 ** rng.uniform(-1, 1))) for _ in range(STEPS)]


# --- The references: one tensor at a time, all in float64 ------------------------------------


def clipped(grads, norm):
    total = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in grads.values()))
    return {n: g.astype(np.float64) * min(1.0, norm / total) for n, g in grads.items()}


class Adam:
    """https://arxiv.org/abs/1412.6980, algorithm 1: the direction m / (sqrt(v) + eps)."""

    def __init__(self, o):
        self.o, self.m, self.v, self.t = o, 0.0, 0.0, 0

    def __call__(self, g):
        o, self.t = self.o, self.t + 1
        self.m = o.b1 * self.m + (1 - o.b1) * g
        self.v = o.b2 * self.v + (1 - o.b2) * g * g
        return self.m / (1 - o.b1**self.t) / (np.sqrt(self.v / (1 - o.b2**self.t)) + o.eps)


class AdamW(Adam):
    """https://arxiv.org/abs/1711.05101, algorithm 2; the learning rate multiplies the decay."""

    def step(self, p, g, rate, decay):
        return p - rate * (self(g) + decay * p)


class Lamb(Adam):
    """https://arxiv.org/abs/1904.00962, algorithm 2, phi(z) = z. The ratio is 1 where a norm is 0
    and, as in its authors' code, for parameters that do not decay."""

    def step(self, p, g, rate, decay):
        u = self(g) + decay * p
        size, length = np.sqrt((p * p).sum()), np.sqrt((u * u).sum())
        return p - rate * (size / length if decay and size and length else 1.0) * u


class Momentum:
    """https://proceedings.mlr.press/v28/sutskever13.html, classical; decoupled decay."""

    def __init__(self, o):
        self.o, self.m = o, 0.0

    def step(self, p, g, rate, decay):
        self.m = self.o.b1 * self.m + g
        return p - rate * (self.m + decay * p)


class Adafactor:
    """https://arxiv.org/abs/1804.04235, algorithms 4 and 5: no first moment, relative step sizes.

    A kernel [d, heads, head_dim] or [heads, head_dim, d] is a matrix with d rows or columns.
    The paper's defaults: eps1 1e-30, eps2 1e-3, d 1, beta2 of step t 1 - t ** -0.8.
    """

    def __init__(self, o):
        self.rows = self.columns = self.v = self.t = 0

    def step(self, p, g, rate, decay):
        self.t += 1
        keep = 1 - self.t**-0.8
        shape = p.shape
        if p.ndim == 3:
            p, g = (x.reshape((128, -1) if shape[0] == 128 else (-1, 128)) for x in (p, g))
        square = g * g + 1e-30
        if p.ndim == 2 and min(p.shape) >= 128:
            self.rows = keep * self.rows + (1 - keep) * square.sum(1)
            self.columns = keep * self.columns + (1 - keep) * square.sum(0)
            v = np.outer(self.rows, self.columns) / self.rows.sum()
        else:
            v = self.v = keep * self.v + (1 - keep) * square
        u = g / np.sqrt(v)
        rms = lambda x: np.sqrt((x * x).mean())
        u = u / max(1.0, rms(u)) * max(1e-3, rms(p))
        return (p - rate * (u + decay * p)).reshape(shape)


def expected(rule, o, start, gradients):
    """The parameters after each step."""
    rules = {name: rule(o) for name in start}
    p, out = {n: x.astype(np.float64) for n, x in start.items()}, []
    for t, grads in enumerate(gradients):
        grads = clipped(grads, o.clip_norm or np.inf)
        p = {
            n: rules[n].step(p[n], grads[n], learning_rate(o, t), o.weight_decay * decays(n))
            for n in p
        }
        out.append(p)
    return out


# --- Ours ------------------------------------------------------------------------------------


def tree(flat, scan):
    """The tree of a model; if scan, with one tensor for all layers under stack/layers."""
    if scan:
        first = [n for n in flat if n.startswith("stack/layer_0/")]
        rest = {n: x for n, x in flat.items() if not n.startswith("stack/")}
        flat = {
            **rest,
            **{
                n.replace("layer_0", "layers"): np.stack(
                    [flat[n.replace("layer_0", f"layer_{i}")] for i in range(LAYERS)]
                )
                for n in first
            },
        }
    out = {}
    for path, x in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = x
    return out


def flatten(params):
    out = {}
    for name, x in named_leaves(params).items():
        if "/layers/" in name:
            out |= {name.replace("layers", f"layer_{i}"): np.asarray(x[i]) for i in range(LAYERS)}
        else:
            out[name] = np.asarray(x)
    return out


def ours(o, start, gradients, scan):
    """The parameters after each step."""
    params = tree(start, scan)
    tx = make(o, STEPS, params)
    state, out = tx.init(params), []

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        params, state = step(params, state, tree(grads, scan))
        out.append(flatten(params))
    return out


def largest_error(history, wanted):
    """The largest error over steps and tensors, with its step and name."""
    assert len(history) == len(wanted)
    assert all(a.keys() == b.keys() for a, b in zip(history, wanted))
    return max(
        (np.abs(a[n] - b[n]).max() / np.abs(b[n]).max(), t, n)
        for t, (a, b) in enumerate(zip(history, wanted))
        for n in b
    )


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    "rule, values, shapes",
    [
        (AdamW, dict(name="adamw", clip_norm=2.0, b2=0.95), SHAPES),
        (AdamW, dict(name="adamw", eps=0.1), SHAPES),
        (Lamb, dict(name="lamb", clip_norm=2.0), SHAPES),
        (Momentum, dict(name="sgd", clip_norm=2.0, b1=0.8), SHAPES),
        (Momentum, dict(name="sgd", b1=0.0), SHAPES),
        (Adafactor, dict(name="adafactor"), SHAPES),
        (Adafactor, dict(name="adafactor", clip_norm=2.0), WIDE),
    ],
    ids=["adamw", "adamw-eps", "lamb", "momentum", "sgd", "adafactor", "adafactor-factored"],
)
def test_follows_the_paper(rule, values, shapes, scan):
    o = optim(**values)
    start, gradients = draw(shapes)
    error = largest_error(ours(o, start, gradients, scan), expected(rule, o, start, gradients))
    assert error[0] < BAR, error


@pytest.mark.parametrize(
    "model, task",
    [
        (dict(name="gpt", preset="gpt2-124m"), "causal_lm"),
        (dict(name="gpt", preset="llama2-70b"), "causal_lm"),
        (dict(name="bert", preset="base"), "mlm_nsp"),
    ],
    ids=["gpt2", "grouped-query", "bert"],
)
def test_the_state_of_adafactor_has_rows_and_columns_of_each_matrix(model, task):
    """Only a row and a column of moments for every kernel and embedding of at least 128 x 128."""
    c = config_lib.new_config()
    with c.unlocked():
        c.model, c.task.name = model, task
    modules.fill(c)
    params = jax.eval_shape(tasks.build(c).init, jax.random.key(0))["params"]
    state = jax.eval_shape(make(optim(name="adafactor"), STEPS, params).init, params)
    wanted = 0
    for name, x in named_leaves(params).items():
        layers, shape = (x.shape[0], x.shape[1:]) if "/layers/" in name else (1, x.shape)
        split = len(shape) - 1 if name.endswith("out/kernel") else 1  # heads are one side
        rows, columns = np.prod(shape[:split], dtype=int), np.prod(shape[split:], dtype=int)
        factored = len(shape) > 1 and "bias" not in name and min(rows, columns) >= 128
        wanted += layers * (rows + columns if factored else rows * columns)
    moments = {n: x for n, x in named_leaves(state).items() if not n.endswith("count")}
    held = [x.size for x in moments.values() if x.shape[-1] != 1]  # a single zero is a placeholder
    assert sum(held) == wanted < 0.005 * count(params)


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_a_scanned_layer_is_optimized_like_a_separate_one(name):
    """An optimizer that has only this layer gives the same parameters."""
    o = optim(name=name)
    start, gradients = draw(WIDE)
    stacked = ours(o, start, gradients, scan=True)
    for i in range(LAYERS):
        only = lambda tensors: {n: x for n, x in tensors.items() if f"layer_{i}/" in n}
        alone = ours(o, only(start), [only(g) for g in gradients], scan=False)
        error = largest_error([only(p) for p in stacked], alone)
        assert error[0] < 2e-6, error


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(
    "rule, name", [(AdamW, "adamw"), (Lamb, "lamb"), (Momentum, "sgd"), (Adafactor, "adafactor")]
)
def test_frozen_parameters_stay_and_do_not_count(rule, name, scan):
    """The others are updated as if the frozen ones did not exist, also in the clipping norm."""
    o = optim(name=name, clip_norm=2.0, freeze="embed|norm")
    start, gradients = draw(SHAPES)
    history = ours(o, start, gradients, scan)
    frozen = [n for n in SHAPES if "embed/" in n or "norm" in n]
    for n in frozen:
        np.testing.assert_array_equal(history[-1][n], start[n])
    rest = lambda tensors: {n: x for n, x in tensors.items() if n not in frozen}
    error = largest_error(
        [rest(p) for p in history], expected(rule, o, rest(start), [rest(g) for g in gradients])
    )
    assert error[0] < BAR, error


# Peak 2, 101 steps (the last is 100), worked out by hand.
@pytest.mark.parametrize(
    "values, rates",
    [
        (
            dict(schedule="cosine"),
            {0: 2.0, 25: 2 * 0.8535534, 50: 1.0, 75: 2 * 0.1464466, 100: 0.0, 500: 0.0},
        ),
        (
            dict(schedule="cosine", warmup_steps=20, final_fraction=0.1),
            {
                0: 0.1,
                9: 1.0,
                19: 2.0,
                20: 2.0,
                60: 2 * 0.55,
                80: 2 * (0.1 + 0.9 * 0.1464466),
                100: 0.2,
            },
        ),
        (
            dict(schedule="linear", warmup_steps=20, final_fraction=0.1),
            {0: 0.1, 19: 2.0, 20: 2.0, 40: 2 * 0.775, 60: 2 * 0.55, 100: 0.2, 500: 0.2},
        ),
        (dict(schedule="constant"), {0: 2.0, 50: 2.0, 100: 2.0, 500: 2.0}),
        (
            dict(schedule="constant", warmup_steps=10, cooldown_steps=20, final_fraction=0.5),
            {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 80: 2.0, 90: 1.5, 95: 1.25, 100: 1.0, 500: 1.0},
        ),
        # peak * sqrt(w / step), steps counted from 1.
        (dict(schedule="rsqrt", warmup_steps=4), {0: 0.5, 3: 2.0, 15: 1.0, 35: 2 / 3, 99: 0.4}),
        (dict(schedule="rsqrt"), {0: 2.0, 3: 1.0, 99: 0.2}),
        (dict(schedule="flat_rsqrt", warmup_steps=4), {0: 2.0, 3: 2.0, 15: 1.0, 35: 2 / 3}),
        (
            dict(schedule="rsqrt", warmup_steps=4, cooldown_steps=10),
            {63: 0.5, 90: 4 / 91**0.5, 95: 2 / 96**0.5, 100: 0.0},
        ),
        (
            dict(schedule="step", boundaries=(10, 40, 200), warmup_steps=4),
            {0: 0.5, 3: 2.0, 9: 2.0, 10: 0.2, 39: 0.2, 40: 0.02, 100: 0.02},
        ),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if "schedule" in x else "",
)
def test_schedule(values, rates):
    o = config_lib.new_config().optim
    o.update(dict(learning_rate=2.0, **values))
    schedule = jax.jit(make_schedule(o, 101))
    got = {step: float(schedule(step)) for step in rates}
    assert got == pytest.approx(rates, rel=2e-6, abs=1e-7)


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(schedule="step"), "needs optim.boundaries, steps such as"),
        (dict(boundaries=(3,)), "is for optim.schedule='step', but that is 'cosine'"),
        (dict(schedule="step", boundaries=(5, 3)), "have to increase, from optim.warmup_steps=0"),
        (dict(schedule="step", boundaries=(5, 5)), "have to increase"),
        (dict(schedule="step", boundaries=(3,), warmup_steps=4), "optim.warmup_steps=4 on"),
        (dict(schedule="step", boundaries=("3",)), "needs optim.boundaries"),
    ],
)
def test_boundaries_that_do_not_fit(values, words):
    o = config_lib.new_config().optim
    o.update(values)
    with pytest.raises(UserError, match=words):
        make_schedule(o, 101)


def test_a_changed_learning_rate_is_reported():
    old = config_lib.new_config()
    old.update(dict(optim=dict(learning_rate=0.1, schedule="linear"), train=dict(steps=41)))
    new = old.copy_and_resolve_references()
    assert schedules.change(old, new, 40) == ""
    new.train.steps = 81
    message = schedules.change(old, new, 40)
    assert "after step 40 is 0.05" in message and "it would be 0." in message
    old.optim.schedule = new.optim.schedule = "constant"
    assert schedules.change(old, new, 40) == ""
