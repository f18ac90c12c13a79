"""What model.remat keeps of a layer for the backward pass."""

import re

import jax
import jax.numpy as jnp
import pytest

from bigjax.errors import UserError
from bigjax.layers.attention import Attention, Span
from bigjax.layers.kernels import blocked, cudnn, einsum
from bigjax.layers.mask import Causal
from bigjax.layers.params import unbox
from bigjax.layers.remat import NAMES, REMAT, policy
from bigjax.models import gpt
from tests import helpers

B, T, D, H, F = 2, 8, 16, 2, 48  # F: of the MLP, which has a gate
SHAPES = {  # in NumPy's order of axes, as einsum attention reads them
    "input": f"[{B},{T},{D}]",
    "query": f"[{B},{T},{H},{D // H}]",
    "context": f"[{B},{T},{H},{D // H}]",
    "residual": f"[{B},{T},{D}]",
    "mlp": f"[{B},{T},{F}]",
}


@pytest.fixture(scope="module")
def block():
    """(a layer as a function of its variables and input, both)."""
    config = gpt.Config(
        *(64, T, D, 1, H), d_ff=F, activation="swiglu", position="rotary", attention="einsum"
    )
    layer, x = gpt.Block(config), jnp.ones((B, T, D))
    span = Span(jnp.broadcast_to(jnp.arange(T), (B, T)))
    arguments = x, jnp.int32(0), span, None, None
    variables = unbox(jax.eval_shape(layer.init, jax.random.key(0), *arguments))
    return lambda variables, x: layer.apply(variables, x, *arguments[1:])[0], variables, x


def saved(block, remat: str, capsys) -> list[str]:
    """Names and shapes of the named arrays of a layer that are kept, and of its argument x; in the
    host's memory, where they have no names, 'host' and shapes."""
    layer, *arguments = block
    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(layer, policy=policy(remat)), *arguments)
    lines = capsys.readouterr().out.splitlines()
    pattern = r"f32(?:<(host)>)?(\[[\d,]+\])(?: named '(\w+)'| from the argument (x)$)?"
    matches = (re.match(pattern, line) for line in lines)
    return sorted(f"{name} {m[2]}" for m in matches if m and (name := m[1] or m[3] or m[4]))


@pytest.mark.parametrize(
    "remat, names",
    [
        ("full", ()),
        ("query", ("query",)),
        ("context,residual", ("context", "residual")),
        ("mlp", ("mlp", "mlp")),
        ("attention", ("query", "key", "value", "context", "residual")),
    ],
)
def test_named_arrays_are_kept(block, capsys, remat, names):
    shapes = {**SHAPES, "key": SHAPES["query"], "value": SHAPES["query"]}
    want = [f"x {SHAPES['input']}", *(f"{name} {shapes[name]}" for name in names)]
    assert saved(block, remat, capsys) == sorted(want)


def test_without_remat_nothing_is_computed_again(block):
    """All products of the forward pass, and both exponentials: of scores and of the activation."""
    layer, *arguments = block

    def count(run):
        loss = lambda *arguments: run(*arguments).sum()
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arguments)
        names = [
            e.primitive.name
            for e in helpers.equations(jax.make_jaxpr(jax.grad(loss))(*zeros).jaxpr)
        ]
        return [names.count(name) for name in ("dot_general", "exp", "logistic", "rsqrt")]

    of = lambda remat: count(jax.checkpoint(layer, policy=policy(remat)))
    assert of("none") == count(layer) and all(a > b for a, b in zip(of("full"), of("none")))


def test_arrays_are_kept_in_the_memory_of_the_host(block, capsys):
    on_host = [f"host {SHAPES[name]}" for name in ("input", "mlp", "mlp")]
    want = [*on_host, f"query {SHAPES['query']}"]
    assert saved(block, "input:host,query,mlp:host", capsys) == sorted(want)


@pytest.mark.parametrize(
    "remat", ["", "all", "query,", "query, key", "query,query", "mlp,mlp:host", "dots,query"]
)
def test_another_remat_is_refused(remat):
    with pytest.raises(UserError) as e:
        gpt.Config(*(64, T, D, 1, H), remat=remat)
    assert f"model.remat is {remat!r}" in str(e.value)
    for name in ("none", "dots", "attention", "full", *NAMES):
        assert name in str(e.value)


def test_a_parallel_block_has_no_sum_to_keep():
    make = lambda remat: gpt.Config(64, T, D, 1, H, parallel_block=True, remat=remat)
    with pytest.raises(
        UserError, match="'input,residual:host'.*parallel_block=True.*no 'residual'"
    ):
        make("input,residual:host")
    assert make("input,mlp").remat == "input,mlp" and make("attention").remat == "attention"


@pytest.mark.parametrize("kernel", ["einsum", "blocked", "cudnn"])
def test_every_kernel_names_its_result(kernel, monkeypatch):
    """cuDNN's runs on GPUs only; what jax calls it by is replaced."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, implementation=None, **k: plain(*a, **k)
    )
    module = {"einsum": einsum, "blocked": blocked, "cudnn": cudnn}[kernel]
    q, mask = jnp.ones((B, T, H, D)), Causal()
    rest = (None,) if kernel == "einsum" else (mask, None, None, None, 1.0)
    call = lambda q: module.attention(q, q, q, *rest)
    names = [e.params["name"] for e in jax.make_jaxpr(call)(q).eqns if e.primitive.name == "name"]
    assert names == ["context"]


def test_dots_remat_keeps_what_splash_attention_reads(capsys):
    """Not the products before biases, rotary positions and the change of axes, which the backward
    pass would have to repeat."""
    module = Attention(4, 2, 32, kernel="splash", rope_theta=1e4)
    x, span = jnp.ones((2, 128, 64)), Span(jnp.zeros((2, 128), int))
    variables = unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), x, span)))
    run = lambda variables, x: module.apply(variables, x, span)[0]
    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(run, policy=REMAT["dots"]), variables, x)
    kept = [line for line in capsys.readouterr().out.splitlines() if line.startswith("f32[2,")]
    shapes = [line.split()[0] for line in kept if "named" in line]
    assert sorted(shapes) == ["f32[2,2,128,32]", "f32[2,2,128,32]", "f32[2,4,128,32]"]
    assert not any("dot_general" in line for line in kept)
