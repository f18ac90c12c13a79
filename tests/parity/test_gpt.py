"""bigjax.models.gpt against Hugging Face's GPT-2 and Llama and a PaLM block in plain PyTorch.

make_gpt.py froze the reference: weights, packed batch, logits, loss and gradients, in float32.
The error of a tensor is max |ours - theirs| / max |theirs|: elements near zero, which are all
rounding, do not count more than others. Largest seen: 3e-6 in logits, 8e-6 in gradients.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.layers import params as params_lib
from bigjax.trees import named_leaves
from tests import helpers

HERE = pathlib.Path(__file__).parent
OUTPUT_BAR, GRADIENT_BAR = 1e-5, 1e-4
CASES = ("gpt2", "llama", "llama3", "palm")


# --- From the reference's names to ours ------------------------------------------------------
# Each function converts the reference's config and arrays to (our model config, {our path: array}).
# The conversion is linear, so that it applies to weights and to gradients.


def gpt2(config, arrays):
    d, heads, n = config["n_embd"], config["n_head"], config["n_layer"]
    fields = dict(
        max_len=config["n_positions"],
        d_model=d,
        n_layers=n,
        n_heads=heads,
        norm_eps=config["layer_norm_epsilon"],
    )
    get = lambda name: arrays[f"transformer.{name}"]
    out = {
        "embed/embedding": get("wte.weight"),
        "position/embedding": get("wpe.weight"),
        "final_norm/scale": get("ln_f.weight"),
        "final_norm/bias": get("ln_f.bias"),
    }
    for i in range(n):
        ours, theirs = f"stack/layer_{i}", f"h.{i}"
        for j in (1, 2):
            out[f"{ours}/norm_{j}/scale"] = get(f"{theirs}.ln_{j}.weight")
            out[f"{ours}/norm_{j}/bias"] = get(f"{theirs}.ln_{j}.bias")
        kernels = np.split(get(f"{theirs}.attn.c_attn.weight"), 3, axis=1)
        biases = np.split(get(f"{theirs}.attn.c_attn.bias"), 3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases):
            out[f"{ours}/attention/{name}/kernel"] = kernel.reshape(d, heads, d // heads)
            out[f"{ours}/attention/{name}/bias"] = bias.reshape(heads, d // heads)
        kernel = get(f"{theirs}.attn.c_proj.weight")
        out[f"{ours}/attention/out/kernel"] = kernel.reshape(heads, d // heads, d)
        out[f"{ours}/attention/out/bias"] = get(f"{theirs}.attn.c_proj.bias")
        for name, theirs_name in (("up", "c_fc"), ("down", "c_proj")):
            out[f"{ours}/mlp/{name}/kernel"] = get(f"{theirs}.mlp.{theirs_name}.weight")
            out[f"{ours}/mlp/{name}/bias"] = get(f"{theirs}.mlp.{theirs_name}.bias")
    return fields, out


def attention_from_linear(d, heads, kv_heads, head_dim, q, k, v, o):
    """torch's Linear weights [out, in] -> [in, heads, head_dim] (o: [heads, head_dim, out])."""
    split = lambda w, n: w.T.reshape(d, n, head_dim)
    return {
        "attention/query/kernel": split(q, heads),
        "attention/key/kernel": split(k, kv_heads),
        "attention/value/kernel": split(v, kv_heads),
        "attention/out/kernel": o.T.reshape(heads, head_dim, d),
    }


def llama(config, arrays):
    d, heads, n = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_hidden_layers"],
    )
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    tied = config["tie_word_embeddings"]
    fields = dict(
        max_len=config["max_position_embeddings"],
        d_model=d,
        n_layers=n,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=config["intermediate_size"],
        position="rotary",
        rope_theta=config["rope_theta"],
        norm="rmsnorm",
        norm_eps=config["rms_norm_eps"],
        activation="swiglu",
        bias=False,
        tie_embeddings=tied,
    )
    out = {
        "embed/embedding": arrays["model.embed_tokens.weight"],
        "final_norm/scale": arrays["model.norm.weight"],
    }
    if not tied:
        out["head/kernel"] = arrays["lm_head.weight"].T
    for i in range(n):
        get = lambda name: arrays[f"model.layers.{i}.{name}.weight"]
        layer = attention_from_linear(
            d, heads, kv_heads, head_dim, *(get(f"self_attn.{x}_proj") for x in "qkvo")
        )
        layer |= {f"mlp/{x}/kernel": get(f"mlp.{x}_proj").T for x in ("gate", "up", "down")}
        layer |= {
            "norm_1/scale": get("input_layernorm"),
            "norm_2/scale": get("post_attention_layernorm"),
        }
        out |= {f"stack/layer_{i}/{name}": x for name, x in layer.items()}
    return fields, out


def palm(config, arrays):
    d, heads, head_dim, n = (config[k] for k in ("d", "heads", "head_dim", "layers"))
    fields = dict(
        d_model=d,
        n_layers=n,
        n_heads=heads,
        n_kv_heads=1,
        head_dim=head_dim,
        d_ff=config["d_ff"],
        position="rotary",
        rope_theta=config["theta"],
        norm_eps=config["eps"],
        activation="swiglu",
        bias=False,
        parallel_block=True,
    )
    out = {"embed/embedding": arrays["embed"], "final_norm/scale": arrays["norm"]}
    for i in range(n):
        get = lambda name: arrays[f"blocks.{i}.{name}"]
        layer = attention_from_linear(d, heads, 1, head_dim, *(get(x) for x in "qkvo"))
        layer |= {
            "mlp/gate/kernel": get("w").T,
            "mlp/up/kernel": get("v_gate").T,
            "mlp/down/kernel": get("down").T,
            "norm_1/scale": get("norm"),
        }
        out |= {f"stack/layer_{i}/{name}": x for name, x in layer.items()}
    return fields, out


MAPS = {"gpt2": gpt2, "llama": llama, "llama3": llama, "palm": palm}


class Reference(NamedTuple):
    fields: dict  # of our model's Config
    params: dict  # {our path: array}, unrolled names
    grads: dict
    batch: dict
    logits: np.ndarray  # [B, T, V]
    loss: float
    real: np.ndarray  # bool [B, T]: False for padding, whose logits are arbitrary


@functools.cache
def reference(case: str) -> Reference:
    with np.load(HERE / f"{case}.npz") as f:
        stored = dict(f)
    config = json.loads(str(stored["config"]))
    part = lambda prefix: {
        k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)
    }
    fields, params = MAPS[case](config, part("params/"))
    assert sum(x.size for x in params.values()) == sum(x.size for x in part("params/").values())
    _, grads = MAPS[case](config, part("grads/"))
    batch = {k: stored[k] for k in ("inputs", "targets", "positions", "weights")}
    batch |= dict(
        segment_ids=stored["segments"], target_bytes=np.ones(len(stored["inputs"]), np.int32)
    )
    fields["vocab_size"] = stored["logits"].shape[-1]
    return Reference(
        fields,
        params,
        grads,
        batch,
        stored["logits"],
        float(stored["loss"]),
        stored["segments"] > 0,
    )


# --- Our side --------------------------------------------------------------------------------


@functools.cache
def compiled(case: str, **more):
    """(task, run): run(params, batch) -> logits, loss, gradients, through the causal_lm task.

    params and gradients: {path in the unrolled model: array}. `run` stacks them for a scanned
    model, so that it returns gradients per layer.
    """
    ref = reference(case)
    c = config_lib.new_config()
    c.model = dict(name="gpt", **{**ref.fields, **more})
    c.data = dict(name="text", seq_len=ref.logits.shape[1])
    task = tasks.build(helpers.filled(c))

    def loss(params, batch):
        # train=True as in the trainer; without dropout it makes no difference.
        (total, weight), _ = task.loss(tree(params, task), {}, None, batch, jax.random.key(0), True)
        return total / weight

    def run(params, batch):
        out = task.model.apply(
            {"params": tree(params, task)},
            batch["inputs"],
            batch["positions"],
            batch["segment_ids"],
        )
        return out.logits, *jax.value_and_grad(loss)(params, batch)

    return task, jax.jit(run)


def tree(flat: dict, task) -> dict:
    """Our parameter tree from {'stack/layer_0/...': array}, stacked if the model is scanned."""
    out = {}
    for path, x in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = x
    if task.model_config.scan:
        out["stack"] = params_lib.stack_layers(out["stack"])
    return out


def error(ours, theirs, scale=None) -> float:
    """max |ours - theirs| / max |scale|; scale: theirs, unless given."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    return np.abs(ours - theirs).max() / np.abs(theirs if scale is None else scale).max()


def gradient_errors(ours: dict, theirs: dict) -> dict:
    assert ours.keys() == theirs.keys()
    errors = {}
    for name, g in theirs.items():
        scale = None
        if name.endswith("key/bias"):
            # A softmax is invariant to a constant added to all its scores, so this gradient is
            # exactly 0 except for rounding. The gradient of the query's bias gives the scale.
            scale = theirs[name.replace("key/bias", "query/bias")]
        errors[name] = error(ours[name], g, scale)
    return errors


# --- Tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scan, attention", [(True, "auto"), (False, "einsum")], ids=["scanned", "unrolled-einsum"]
)  # auto on a CPU: blocked
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case, scan, attention):
    ref = reference(case)
    task, run = compiled(case, scan=scan, attention=attention)
    shapes = lambda p: {name: x.shape for name, x in named_leaves(p).items()}
    assert shapes(jax.eval_shape(lambda: tree(ref.params, task))) == shapes(
        jax.eval_shape(task.init, jax.random.key(0))["params"]
    )

    logits, loss, grads = run(ref.params, ref.batch)
    assert logits.dtype == np.float32
    assert error(np.asarray(logits)[ref.real], ref.logits[ref.real]) < OUTPUT_BAR
    assert error(loss, ref.loss) < OUTPUT_BAR
    errors = gradient_errors(grads, ref.grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_gradients_with_remat(case):
    ref = reference(case)
    _, run = compiled(case, scan=True, attention="auto", remat="full")
    _, loss, grads = run(ref.params, ref.batch)
    assert error(loss, ref.loss) < OUTPUT_BAR
    errors = gradient_errors(grads, ref.grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_computation(case):
    """Logits within 0.08 of the largest one.

    A number is rounded to 8 bits, 2**-9 of it at most, some 10 times a layer; over three layers,
    as a random walk, sqrt(30) * 2**-9 = 0.011 of a typical logit. The worst of 3000 logits is 4
    deviations out, and the largest, which we divide by, 3.5 typical ones: 0.012. These weights
    magnify more than trained ones would: 0.011 to 0.039 are seen, and the bound is twice that.
    The lower bound shows that bfloat16 was computed in at all (float32: 3e-6).
    """
    ref = reference(case)
    task, _ = compiled(case, dtype="bfloat16")
    inputs = [ref.batch[k] for k in ("inputs", "positions", "segment_ids")]
    model = task.model
    forward = jax.jit(lambda params: model.apply({"params": tree(params, task)}, *inputs).logits)
    logits = forward(ref.params)
    assert logits.dtype == np.float32
    assert 1e-4 < error(np.asarray(logits)[ref.real], ref.logits[ref.real]) < 0.08


def one_weight(ref):
    """A thousandth of one weight."""
    name = "stack/layer_1/norm_1/scale"
    changed = ref.params[name].copy()
    changed[3] *= 1.001
    return {**ref.params, name: changed}, ref.batch


def swapped_layers(ref):
    swap = {"stack/layer_0": "stack/layer_1", "stack/layer_1": "stack/layer_0"}
    return {
        "/".join([swap.get(name[:13], name[:13]), name[14:]]) if name[:13] in swap else name: x
        for name, x in ref.params.items()
    }, ref.batch


def no_segments(ref):
    return ref.params, {**ref.batch, "segment_ids": np.ones_like(ref.batch["segment_ids"])}


def no_positions(ref):
    positions = np.broadcast_to(np.arange(ref.logits.shape[1]), ref.batch["positions"].shape)
    return ref.params, {**ref.batch, "positions": positions.astype(np.int32)}


def interleaved_pairs(ref):
    """Rotary pairs as in GPT-J, (0, 1), (2, 3), ...: no change to plain scores."""

    def change(name, x):
        if not name.endswith(("query/kernel", "key/kernel")):
            return x
        return np.concatenate([x[..., ::2], x[..., 1::2]], -1)

    return {name: change(name, x) for name, x in ref.params.items()}, ref.batch


@pytest.mark.parametrize(
    "case, mistake",
    [
        (case, mistake)
        for case in CASES
        for mistake in (one_weight, swapped_layers, no_segments, no_positions, interleaved_pairs)
        # Rotary positions are relative: within a document, starting later changes nothing.
        # Learned ones have no pairs.
        if mistake != (interleaved_pairs if case == "gpt2" else no_positions)
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_bars_notice(case, mistake):
    ref = reference(case)
    _, run = compiled(case, scan=True, attention="auto")  # already compiled above
    params, batch = mistake(ref)
    logits, _, grads = run(params, batch)
    assert error(np.asarray(logits)[ref.real], ref.logits[ref.real]) > 3 * OUTPUT_BAR
    assert max(gradient_errors(grads, ref.grads).values()) > 3 * GRADIENT_BAR
