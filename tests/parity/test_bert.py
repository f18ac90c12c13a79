"""bigjax.models.bert against Hugging Face's BERT with its heads, and against published sizes.

make_bert.py froze the reference: weights, padded batch, logits, loss and gradients, in float32.
Errors are measured as in test_gpt.py. Logits of padding are not compared: in ours, padding attends
to padding, in theirs to the text; they are not used. Largest seen: 8e-7 in logits, 3e-6 in
gradients.
"""

import functools
import json
import pathlib
from typing import NamedTuple

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers import params as params_lib
from bigjax.layers.output import linear_losses
from bigjax.losses import cross_entropy
from bigjax.models import ModelOutput, bert
from bigjax.trees import count, named_leaves
from tests.parity.test_gpt import GRADIENT_BAR, OUTPUT_BAR, error

HERE = pathlib.Path(__file__).parent
HEADS = {
    "pretraining": ("mlm", "nsp"),
    "classifier": ("classifier",),
    "tagger": ("tagger",),
    "span": ("span",),
}
# https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1908.08962: the encoder and its pooler.
PUBLISHED = {
    "tiny": 4_385_920,
    "mini": 11_170_560,
    "small": 28_763_648,
    "medium": 41_373_184,
    "base": 109_482_240,
    "large": 335_141_888,
}


# --- From the reference's names to ours ------------------------------------------------------

# {theirs: ours} of modules with a weight and a bias; Linear's weights are [out, in].
NORMS = {
    "bert.embeddings.LayerNorm": "embed_norm",
    "cls.predictions.transform.LayerNorm": "mlm/norm",
}
DENSE = {
    "bert.pooler.dense": "pooler",
    "cls.predictions.transform.dense": "mlm/dense",
    "cls.seq_relationship": "nsp",
    "qa_outputs": "span",
}
EMBEDDINGS = {"word": "embed", "position": "position", "token_type": "token_type"}


def layer(get, d, heads):
    """The arrays of one block. get(their name) returns an array."""
    out = {}
    for name in ("query", "key", "value"):
        out[f"attention/{name}/kernel"] = get(f"attention.self.{name}.weight").T.reshape(
            d, heads, d // heads
        )
        out[f"attention/{name}/bias"] = get(f"attention.self.{name}.bias").reshape(
            heads, d // heads
        )
    out["attention/out/kernel"] = get("attention.output.dense.weight").T.reshape(
        heads, d // heads, d
    )
    out["attention/out/bias"] = get("attention.output.dense.bias")
    for ours, theirs in (("up", "intermediate"), ("down", "output")):
        out[f"mlp/{ours}/kernel"] = get(f"{theirs}.dense.weight").T
        out[f"mlp/{ours}/bias"] = get(f"{theirs}.dense.bias")
    for ours, theirs in (("norm_1", "attention.output"), ("norm_2", "output")):
        out[f"{ours}/scale"] = get(f"{theirs}.LayerNorm.weight")
        out[f"{ours}/bias"] = get(f"{theirs}.LayerNorm.bias")
    return out


def converted(case, config, arrays):
    """{our path, unrolled: array} of weights or of gradients."""
    out = {
        f"{b}/embedding": arrays[f"bert.embeddings.{a}_embeddings.weight"]
        for a, b in EMBEDDINGS.items()
    }
    if case == "pretraining":
        out["mlm/bias"] = arrays["cls.predictions.bias"]
    for theirs, path in NORMS.items():
        if f"{theirs}.weight" in arrays:
            out |= {
                f"{path}/scale": arrays[f"{theirs}.weight"],
                f"{path}/bias": arrays[f"{theirs}.bias"],
            }
    for theirs, path in {**DENSE, "classifier": case}.items():
        if f"{theirs}.weight" in arrays:
            out |= {
                f"{path}/kernel": arrays[f"{theirs}.weight"].T,
                f"{path}/bias": arrays[f"{theirs}.bias"],
            }
    for i in range(config["num_hidden_layers"]):
        get = lambda name: arrays[f"bert.encoder.layer.{i}.{name}"]
        out |= {
            f"stack/layer_{i}/{name}": x
            for name, x in layer(get, config["hidden_size"], config["num_attention_heads"]).items()
        }
    return out


class Reference(NamedTuple):
    fields: dict  # of our model's Config
    n_labels: int
    params: dict  # {our path: array}, unrolled names
    grads: dict
    batch: dict
    logits: dict  # by head; [B, ...] and [B, T, ...]
    loss: float
    real: np.ndarray  # bool [B, T]: not padding


@functools.cache
def reference(case: str) -> Reference:
    with np.load(HERE / f"bert_{case}.npz") as f:
        stored = dict(f)
    config = json.loads(str(stored["config"]))
    fields = dict(
        vocab_size=config["vocab_size"],
        max_len=config["max_position_embeddings"],
        n_types=config["type_vocab_size"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        d_ff=config["intermediate_size"],
    )
    if config["layer_norm_eps"] != 1e-12:  # BERT's, which must be our default
        fields["norm_eps"] = config["layer_norm_eps"]
    part = lambda prefix: {
        k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)
    }
    params, grads = (converted(case, config, part(prefix)) for prefix in ("params/", "grads/"))
    assert sum(x.size for x in params.values()) == sum(x.size for x in part("params/").values())
    logits = {head: stored[head if case == "pretraining" else "logits"] for head in HEADS[case]}
    batch = {
        k: v
        for k, v in stored.items()
        if "/" not in k and k not in ("config", "loss", "logits", "mlm", "nsp")
    }
    if case == "pretraining":
        batch |= masked_columns(batch["mlm_labels"])
    return Reference(
        fields,
        config["num_labels"],
        params,
        grads,
        batch,
        logits,
        float(stored["loss"]),
        stored["segments"] > 0,
    )


def masked_columns(labels_BT) -> dict:
    """The columns that have labels, [B, M]; rows with fewer are padded with weight 0."""
    columns = [np.flatnonzero(row >= 0) for row in labels_BT]
    M = max(map(len, columns))
    masked_positions = np.array([np.pad(c, (0, M - len(c))) for c in columns], np.int32)
    weights = np.array([np.arange(M) < len(c) for c in columns], np.float32)
    return dict(
        masked_positions=masked_positions,
        masked_weights=weights,
        masked_labels=np.take_along_axis(labels_BT, masked_positions, 1) * weights.astype(np.int32),
    )


# --- Our side --------------------------------------------------------------------------------


def mean_loss(logits, labels, weights=None):
    """weights: by default 0 where labels are -100, else 1."""
    weights = (labels >= 0).astype(jnp.float32) if weights is None else weights
    total, weight = cross_entropy(logits, jnp.maximum(labels, 0), weights)
    return total / weight


def logits_of(out: ModelOutput) -> dict:
    """{head: logits}."""
    return out.heads if out.linear is None else {"mlm": out.logits, **out.heads}


def loss_of(case, linear, out, batch, gathered):
    if case == "pretraining":
        if gathered:
            weights = batch["masked_weights"]
            mlm = linear_losses(*linear, batch["masked_labels"], weights)["total"]
            mlm = mlm / weights.sum()
        else:
            mlm = mean_loss(out["mlm"], batch["mlm_labels"])
        return mlm + mean_loss(out["nsp"], batch["nsp_labels"])
    if case == "span":
        start, end = jnp.moveaxis(
            jnp.where(batch["segments"][..., None] > 0, out["span"], -1e30), -1, 0
        )
        return (mean_loss(start, batch["starts"]) + mean_loss(end, batch["ends"])) / 2
    return mean_loss(out[case], batch["labels"])


def new_model(case, **more):
    ref = reference(case)
    return bert.Model(bert.Config(**ref.fields, **more), HEADS[case], ref.n_labels)


def tree(flat: dict, scan: bool) -> dict:
    """Our parameter tree from {'stack/layer_0/...': array}."""
    out = unflatten_dict(flat, sep="/")
    return {**out, "stack": params_lib.stack_layers(out["stack"])} if scan else out


@functools.cache
def compiled(case: str, gathered: bool = False, **more):
    """run(params, batch) -> logits, loss, gradients; params and gradients by unrolled path.

    gathered: as in training, masked positions only and never all of their logits.
    """
    model = new_model(case, **more)

    def loss(params, batch):
        out = model.apply(
            {"params": tree(params, model.config.scan)},
            batch["tokens"],
            batch["types"],
            batch["segments"],
            masked_positions_BM=batch["masked_positions"] if gathered else None,
        )
        logits = logits_of(out)
        logits = {name: x[:, 0] if name in bert.POOLED else x for name, x in logits.items()}
        return loss_of(case, out.linear, logits, batch, gathered), logits

    def run(params, batch):
        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return out, value, grads

    return jax.jit(run)


def output_errors(ref, out, gathered=False) -> dict:
    errors = {}
    for head, theirs in ref.logits.items():
        where = ref.real if theirs.ndim == 3 else ...
        if head == "mlm" and gathered:
            theirs = np.take_along_axis(theirs, ref.batch["masked_positions"][..., None], 1)
            where = ref.batch["masked_weights"] > 0
        assert out[head].dtype == np.float32
        errors[head] = error(np.asarray(out[head])[where], theirs[where])
    return errors


def gradient_errors(ref, ours: dict) -> dict:
    """The error of each gradient.

    A softmax is invariant to a constant added to all its scores. So the gradients of a key's bias,
    of a span's, and of the last bias before that are exactly 0 except for rounding; their errors
    are relative to gradients of other parameters.
    """
    others = {"key/bias": "query/bias"}
    if "span" in ref.logits:
        last = f"layer_{ref.fields['n_layers'] - 1}/norm_2"
        others |= {"span/bias": "span/kernel", f"{last}/bias": f"{last}/scale"}
    assert ours.keys() == ref.grads.keys()
    errors = {}
    for name, theirs in ref.grads.items():
        other = [name.replace(a, b) for a, b in others.items() if name.endswith(a)]
        errors[name] = error(ours[name], theirs, ref.grads[other[0]] if other else None)
    return errors


# --- Tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attention, scan",
    [
        ("einsum", True),
        ("blocked", False),
        pytest.param("einsum", False, marks=pytest.mark.slow),
        pytest.param("blocked", True, marks=pytest.mark.slow),
    ],
    ids=["einsum-scanned", "blocked-unrolled", "einsum-unrolled", "blocked-scanned"],
)
@pytest.mark.parametrize(
    "case, gathered",
    [*((case, False) for case in HEADS), ("pretraining", True)],
    ids=[*HEADS, "pretraining-gathered"],
)
def test_logits_loss_and_gradients(case, gathered, attention, scan):
    ref = reference(case)
    model = new_model(case, scan=scan, attention=attention)
    shapes = lambda p: {name: x.shape for name, x in named_leaves(p).items()}
    assert shapes(jax.eval_shape(lambda: tree(ref.params, scan))) == shapes(
        params_lib.unbox(
            jax.eval_shape(model.init, jax.random.key(0), ref.batch["tokens"])["params"]
        )
    )

    run = compiled(case, gathered, scan=scan, attention=attention)
    out, loss, grads = run(ref.params, ref.batch)
    errors = output_errors(ref, out, gathered)
    assert max(errors.values()) < OUTPUT_BAR, errors
    assert error(loss, ref.loss) < OUTPUT_BAR
    errors = gradient_errors(ref, grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("attention", ["einsum", "blocked"])
def test_packed_examples_give_the_logits_of_separate_rows(attention):
    """Two examples in one row, then padding: the logits equal those of separate rows."""
    ref = reference("pretraining")
    model = new_model("pretraining", attention=attention)
    params = {"params": tree(ref.params, scan=True)}
    rows = [(b, int(ref.real[b].sum())) for b in (1, 3)]
    start = rows[0][1]  # of the second example
    part = lambda name, b, n: ref.batch[name][b : b + 1, :n]
    join = lambda name: np.pad(
        np.concatenate([part(name, b, n) for b, n in rows], 1), ((0, 0), (0, 3)), constant_values=1
    )
    segments = np.repeat([1, 2, 0], [rows[0][1], rows[1][1], 3])[None]
    positions = np.concatenate([np.arange(n) for _, n in rows] + [[0, 1, 2]])[None]
    masked_positions = [[1, 5, start - 1], [0, 2, 8]]  # of each example

    run = jax.jit(lambda *args, **columns: logits_of(model.apply(*args, **columns)))
    packed = run(
        params,
        join("tokens"),
        join("types"),
        segments,
        positions,
        masked_positions_BM=np.array(
            [masked_positions[0] + [start + i for i in masked_positions[1]]]
        ),
        first_BK=np.array([[0, start]]),
    )
    assert packed["mlm"].shape[1] == 6 and packed["nsp"].shape[1] == 2
    for i, (b, n) in enumerate(rows):
        separate = run(params, part("tokens", b, n), part("types", b, n))
        mlm, nsp = packed["mlm"][0, 3 * i : 3 * i + 3], packed["nsp"][0, i]
        assert error(mlm, separate["mlm"][0, np.array(masked_positions[i])]) < OUTPUT_BAR
        assert error(nsp, separate["nsp"][0, 0]) < OUTPUT_BAR
        assert error(mlm, ref.logits["mlm"][b, masked_positions[i]]) < OUTPUT_BAR
        assert error(nsp, ref.logits["nsp"][b]) < OUTPUT_BAR


def one_weight(ref):
    """One weight is changed by 1%."""
    name = "stack/layer_1/norm_1/scale"
    changed = ref.params[name].copy()
    changed[3] *= 1.01
    return {**ref.params, name: changed}, ref.batch


def swapped_types(ref):
    return ref.params, {**ref.batch, "types": 1 - ref.batch["types"]}


def no_segments(ref):
    return ref.params, {**ref.batch, "segments": np.ones_like(ref.batch["segments"])}


@pytest.mark.parametrize(
    "mistake", [one_weight, swapped_types, no_segments], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("case", HEADS)
def test_bars_notice(case, mistake):
    ref = reference(case)
    run = compiled(case, False, scan=True, attention="blocked")  # already compiled above
    out, _, grads = run(*mistake(ref))
    assert max(output_errors(ref, out).values()) > 3 * OUTPUT_BAR
    assert max(gradient_errors(ref, grads).values()) > 3 * GRADIENT_BAR


def test_every_preset_has_a_published_size():
    assert PUBLISHED.keys() == bert.PRESETS.keys()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameter_counts(preset):
    model = bert.Model(bert.Config(**bert.PRESETS[preset]), ("nsp",))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    assert count({k: v for k, v in params.items() if k != "nsp"}) == PUBLISHED[preset]
