"""bigjax.models.t5 against Hugging Face's T5, T5 1.1 and Marian.

make_t5.py froze the reference: weights, sources of several lengths, logits, loss and gradients, in
float32, and what beam search finds. The error of a tensor is max |ours - theirs| / max |theirs|, as
in test_gpt.py. Largest seen: 3e-6 in logits, 1.3e-5 in gradients, 3e-6 with a cache.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bigjax import losses
from bigjax.infer import beam_search
from bigjax.layers import params as params_lib
from bigjax.models import t5
from tests.parity.drawn import weights
from tests.parity.test_gpt import error, gradient_errors

HERE = pathlib.Path(__file__).parent
OUTPUT_BAR, GRADIENT_BAR, CACHE_BAR = 1e-5, 1e-4, 2e-5
CASES = ("t5", "t5_1_1", "marian")
FAMILIES = {family.name: family for family in t5.HUGGING_FACE}
END = 1


def entries_of(config: dict):
    """(config of our model, the tensors of the reference)."""
    family = FAMILIES[config["model_type"]]
    c = t5.Config(**family.model_fields(config))
    return c, family.entries(next(iter(family.architectures)), vars(c), 2)


def ours(entries, arrays) -> dict:
    """{our name: array} from the reference's."""
    out: dict = {}
    for entry in entries:
        if entry.name in arrays:
            out |= entry.to_ours(arrays[entry.name])
    return out


def tree(flat: dict, scan: bool) -> dict:
    """Our parameter tree from {'encoder/stack/layer_0/...': array}, stacked if scanned."""
    out: dict = {}
    for path, x in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = x
    for side in ("encoder", "decoder") if scan else ():
        out[side]["stack"] = params_lib.stack_layers(out[side]["stack"])
    return out


class Reference(NamedTuple):
    c: Any  # our model's Config
    params: dict  # {our path: array}, unrolled names
    grads: dict
    batch: dict
    logits: np.ndarray  # [B, T, V]
    loss: float


@functools.cache
def reference(case: str) -> Reference:
    with np.load(HERE / f"{case}.npz") as f:
        stored = dict(f)
    config = json.loads(str(stored["config"]))
    part = lambda prefix: {
        k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)
    }
    c, entries = entries_of(config)
    params = ours(entries, part("params/"))
    assert sum(x.size for x in params.values()) == sum(x.size for x in part("params/").values())
    batch = {k: stored[k] for k in ("source", "source_segments", "inputs", "targets", "weights")}
    return Reference(
        c, params, ours(entries, part("grads/")), batch, stored["logits"], float(stored["loss"])
    )


def model_of(ref: Reference, **more):
    fields = {f: getattr(ref.c, f) for f in ref.c.__dataclass_fields__}
    off = dict.fromkeys(("dropout", "attention_dropout", "mlp_dropout"), 0.0)
    return t5.Model(t5.Config(**{**fields, **off, **more}))


@functools.cache
def compiled(case: str, **more):
    """run(params, batch) -> logits, loss, gradients."""
    model = model_of(reference(case), **more)

    def forward(params, batch):
        return model.apply(
            {"params": tree(params, model.config.scan)},
            batch["source"],
            batch["inputs"],
            source_segments_BS=batch["source_segments"],
            rng=jax.random.key(0),
        ).logits

    def loss(params, batch):
        total, weight = losses.cross_entropy(
            forward(params, batch), batch["targets"], batch["weights"]
        )
        return total / weight

    return jax.jit(
        lambda params, batch: (forward(params, batch), *jax.value_and_grad(loss)(params, batch))
    )


@pytest.mark.parametrize(
    "scan, attention", [(True, "auto"), (False, "einsum")], ids=["scanned", "unrolled-einsum"]
)  # auto on a CPU: blocked
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case, scan, attention):
    ref = reference(case)
    logits, loss, grads = compiled(case, scan=scan, attention=attention)(ref.params, ref.batch)
    real = ref.batch["weights"] > 0
    assert logits.dtype == np.float32
    assert error(np.asarray(logits)[real], ref.logits[real]) < OUTPUT_BAR
    assert error(loss, ref.loss) < OUTPUT_BAR
    errors = gradient_errors({n: grads[n] for n in ref.grads}, ref.grads)
    assert max(errors.values()) < GRADIENT_BAR, errors


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_equals_teacher_forcing(case):
    """For sources of unequal length, by step of the Decoder."""
    ref = reference(case)
    decoder = t5.decoder(model_of(ref, scan=False).config)
    variables = {"params": tree(ref.params, False)}
    sources = [
        row[segments > 0].tolist()
        for row, segments in zip(ref.batch["source"], ref.batch["source_segments"])
    ]
    context, first = decoder.context(sources)
    np.testing.assert_array_equal(first, ref.batch["inputs"][:, 0])
    state = jax.jit(decoder.begin, static_argnums=2)(variables, context, 16)
    step = jax.jit(decoder.step)
    found = []
    for tokens in ref.batch["inputs"].T:
        logits, state = step(variables, state, tokens)
        found.append(logits)
    found, real = np.stack(found, 1), ref.batch["weights"] > 0
    assert error(found[real], ref.logits[real]) < CACHE_BAR


@pytest.mark.parametrize(
    "models", [range(0, 50, 10), pytest.param(range(50), marks=pytest.mark.slow)], ids=len
)
def test_beam_search_finds_what_the_reference_finds(models):
    """With 50 random models and sources. Scores to 1e-4; where two scores of the reference differ
    by less, their order may too."""
    with np.load(HERE / "beams.npz") as f:
        stored = dict(f)
    compared = 0
    for i in models:
        config = json.loads(str(stored[f"config_{i}"]))
        c, entries = entries_of(config)
        arrays = weights({e.name: e.shape for e in entries}, config["seed"], config["gain"])
        variables = {"params": tree(ours(entries, arrays), False)}
        options, source = config["search"], stored[f"source_{i}"]
        decoder = t5.decoder(c)
        context, first = decoder.context([row[row > 0].tolist() for row in source])
        n = options["max_new_tokens"]
        tokens, scores = beam_search.search(
            decoder,
            variables,
            context,
            first,
            width=options["width"],
            size=32,
            n=n,
            end_id=END,
            pad_id=0,
            slots=32,
            length_penalty=options["length_penalty"],
        )
        np.testing.assert_allclose(scores, stored[f"scores_{i}"], rtol=1e-4, atol=1e-4)
        theirs, ranks = stored[f"tokens_{i}"], stored[f"scores_{i}"]
        width = theirs.shape[-1]
        for b, beams in enumerate(theirs):
            for w, text in enumerate(beams):
                others = np.delete(ranks[b], w)
                if len(others) and np.abs(others - ranks[b, w]).min() < 1e-4:
                    continue
                compared += 1
                np.testing.assert_array_equal(tokens[b, w, :width], text, f"{i} {b} {w}")
                assert (np.asarray(tokens[b, w, width:]) == 0).all()
    assert compared > 8 * len(models)
