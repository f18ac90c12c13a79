"""Options of bigjax.models.gpt against transformers' Llama 3.1, Mistral, Qwen, Gemma, Phi-3, OLMo 2
and GPT-NeoX.

make_decoders.py froze the reference: config.json, weights, packed batch, logits, loss and
gradients. The tables of bigjax.interop give our model and names. Errors are relative to the
largest number, as in test_gpt.py.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.interop.families import family_and_class
from bigjax.interop.mapping import Family
from bigjax.layers import params as params_lib
from bigjax.layers.output import linear_losses
from bigjax.models import gpt
from bigjax.parallel import mesh as mesh_lib
from bigjax.trees import named_leaves
from tests.parity.test_gpt import GRADIENT_BAR, HERE, OUTPUT_BAR, error, gradient_errors

CASES = (
    *("llama31", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3_long", "olmo2"),
    *("gpt_neox", "gpt_neox_sequential"),
)


class Reference(NamedTuple):
    config: dict  # config.json
    family: Family
    model: gpt.Config
    tensors: dict  # {their name: array}
    params: dict  # {our name: array}, unrolled names
    grads: dict
    batch: dict
    logits: np.ndarray  # [B, T, V]
    loss: float
    real: np.ndarray  # bool [B, T]: False for padding, whose logits are arbitrary


@functools.cache
def reference(case: str) -> Reference:
    with np.load(HERE / f"decoder_{case}.npz") as f:
        stored = dict(f)
    config = json.loads(str(stored["config"]))
    _, family, architecture = family_and_class(config)
    fields = family.model_fields(config)
    entries = family.entries(architecture, fields, 2)
    part = lambda prefix: {
        k.removeprefix(prefix): x for k, x in stored.items() if k.startswith(prefix)
    }
    ours = lambda theirs: {k: x for e in entries for k, x in e.to_ours(theirs[e.name]).items()}
    tensors = part("params/")
    assert [e.name for e in entries] == [*tensors]  # the order of transformers, for its shards
    return Reference(
        config,
        family,
        gpt.Config(**fields),
        tensors,
        ours(tensors),
        ours(part("grads/")),
        {k: stored[k] for k in ("inputs", "targets", "positions", "weights", "segments")},
        stored["logits"],
        float(stored["loss"]),
        stored["segments"] > 0,
    )


def tree(flat: dict, c: gpt.Config) -> dict:
    """Our parameter tree from {'stack/layer_0/...': array}, stacked if the model is scanned."""
    out: dict = {}
    for path, x in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = x
    if c.scan:
        out["stack"] = params_lib.stack_layers(out["stack"], len(c.blocks))
    return out


@functools.cache
def compiled(case: str, **more):
    """run(params, batch) -> logits, loss, gradients; params and gradients as in Reference."""
    c = dataclasses.replace(reference(case).model, **more)

    def forward(params, batch):
        inputs = (batch[k] for k in ("inputs", "positions", "segments"))
        return gpt.Model(c).apply({"params": tree(params, c)}, *inputs)

    def loss(params, batch):
        out = forward(params, batch)
        sums = linear_losses(*out.linear, batch["targets"], batch["weights"])
        return sums["total"] / batch["weights"].sum(), out.logits

    def run(params, batch):
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return logits, value, grads

    return c, jax.jit(run), jax.jit(lambda *a: forward(*a).logits)


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case):
    ref = reference(case)
    c, run, _ = compiled(case)
    shapes = lambda p: {name: x.shape for name, x in named_leaves(params_lib.unbox(p)).items()}
    init = jax.eval_shape(gpt.Model(c).init, jax.random.key(0), jnp.zeros((1, 1), int))
    assert shapes(jax.eval_shape(lambda: tree(ref.params, c))) == shapes(init["params"])
    logits, loss, grads = run(ref.params, ref.batch)
    assert error(np.asarray(logits)[ref.real], ref.logits[ref.real]) < OUTPUT_BAR
    assert error(loss, ref.loss) < OUTPUT_BAR
    errors = gradient_errors(grads, ref.grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_unrolled_layers_and_the_plain_kernel(case):
    ref = reference(case)
    _, run, _ = compiled(case, scan=False, attention="einsum")
    logits, _, grads = run(ref.params, ref.batch)
    assert error(np.asarray(logits)[ref.real], ref.logits[ref.real]) < OUTPUT_BAR
    assert max(gradient_errors(grads, ref.grads).values()) < GRADIENT_BAR


def test_norms_of_queries_and_keys_whose_heads_are_sharded():
    ref = reference("olmo2")
    pad = lambda x, axis: np.pad(x, [(0, 3 if i == axis else 0) for i in range(2)])  # 61 tokens
    params = ref.params | {
        "embed/embedding": pad(ref.params["embed/embedding"], 0),
        "head/kernel": pad(ref.params["head/kernel"], 1),
    }
    c = dataclasses.replace(ref.model, vocab_size=64)
    inputs = [np.concatenate([ref.batch[k]] * 2) for k in ("inputs", "positions", "segments")]
    with jax.set_mesh(mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, (2, 1, 2, 2))))):
        run = jax.jit(lambda p: gpt.Model(c).apply({"params": tree(p, c)}, *inputs).logits)
        logits = np.asarray(run(params))[:3, :, :61]
    assert error(logits[ref.real], ref.logits[ref.real]) < OUTPUT_BAR


@pytest.mark.parametrize("case", ["qwen3", "gemma2", "olmo2", "gpt_neox"])
def test_bfloat16_computation(case):
    """See test_gpt.py for the bound."""
    ref = reference(case)
    _, _, forward = compiled(case, dtype="bfloat16")
    logits = forward(ref.params, ref.batch)
    assert logits.dtype == np.float32
    assert 1e-4 < error(np.asarray(logits)[ref.real], ref.logits[ref.real]) < 0.08


@pytest.mark.parametrize("case", ["llama31", "mistral", "gemma3", "phi3", "gpt_neox"])
def test_cached_logits_equal_uncached_ones(case):
    ref = reference(case)
    c, _, _ = compiled(case, scan=False)
    variables = {"params": tree(ref.params, c)}
    tokens = ref.batch["inputs"][:2, :14]
    want = jax.jit(gpt.Model(c).apply)(variables, tokens).logits
    decoder = gpt.decoder(c)
    context, _ = decoder.context([tokens[0, :10].tolist(), tokens[1, :7].tolist()])
    state = jax.jit(decoder.begin, static_argnums=2)(variables, context, 20)
    step, rows = jax.jit(decoder.step), np.arange(2)
    for t in range(4):
        at = np.array([9 + t, 6 + t])
        logits, state = step(variables, state, tokens[rows, at])
        np.testing.assert_allclose(logits, want[rows, at], atol=2e-5)


def changed(ref: Reference, **more):
    """The logits of a model with other options, of the same parameters."""
    c = dataclasses.replace(ref.model, **more)
    inputs = (ref.batch[k] for k in ("inputs", "positions", "segments"))
    return gpt.Model(c).apply({"params": tree(ref.params, c)}, *inputs).logits


@pytest.mark.parametrize(
    "case, options",
    [
        ("llama31", dict(rope_low_factor=0.5)),
        ("mistral", dict(window=6)),
        ("gemma2", dict(attention_softcap=2.1)),
        ("gemma2", dict(logit_softcap=3.1)),
        ("gemma2", dict(query_scale=0.3)),
        ("gemma2", dict(embed_scale=False)),
        ("gemma3", dict(local_rope_theta=110.0)),
        ("phi3", dict(rope_attention_factor=1.1)),
        ("phi3", dict(rope_original_len=19)),  # the rows have 20 tokens: the long factors
        ("phi3_long", dict(rope_original_len=20)),
        ("gpt_neox", dict(rope_share=0.5)),
    ],
    ids=str,
)
def test_bars_notice(case, options):
    ref = reference(case)
    logits = changed(ref, **options)
    assert error(np.asarray(logits)[ref.real], ref.logits[ref.real]) > 3 * OUTPUT_BAR
