"""Losses and gradients of preferences equal those of TRL, see check_preference.py."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import config as config_lib
from bigjax import interop, tasks
from bigjax.errors import UserError
from bigjax.trees import named_leaves
from tests import helpers

FROZEN = dict(np.load(pathlib.Path(__file__).parent / "preference.npz"))
T, PAD = FROZEN["pairs/ids"].shape[1], 0
KTO = dict(loss="kto", desirable_weight=1.5, undesirable_weight=0.7)
CASES = {
    "sigmoid": {},
    "conservative": dict(label_smoothing=0.1),
    "nll": dict(nll_weight=0.5),
    "robust": dict(loss="robust", label_smoothing=0.2),
    "ipo": dict(loss="ipo", beta=0.4),
    "hinge": dict(loss="hinge"),
    "orpo": dict(loss="orpo", beta=0.3),
    "simpo": dict(loss="simpo", beta=2.0, gamma=0.6, label_smoothing=0.1, nll_weight=0.5),
    "kto": KTO,
    "kto_reversed": KTO,  # the policy and the reference change places: a KL below 0 counts as 0
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(prefix): the frozen arrays of the model's parameters as (config.model, parameters)."""

    def call(prefix):
        folder = tmp_path_factory.mktemp("llama")
        (folder / "config.json").write_text(str(FROZEN["config"]))
        own = {n.removeprefix(prefix): x for n, x in FROZEN.items() if n.startswith(prefix)}
        if "lm_head.weight" not in own:
            own["lm_head.weight"] = np.zeros_like(own["model.embed_tokens.weight"])
        own.pop("score.weight", None)
        save_file(
            {n: np.ascontiguousarray(x) for n, x in own.items()}, folder / "model.safetensors"
        )
        read = interop.read(str(folder), "gpt", "")
        return read.model, {n: np.asarray(read.load(n)) for n in read.names}

    return call


def tree(named) -> dict:
    out: dict = {}
    for name, x in named.items():
        *parents, last = name.split("/")
        node = out
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = x
    return out


def rows(name, prefix="") -> dict[str, np.ndarray]:
    ids, lengths, prompts = (FROZEN[f"{name}/{key}"] for key in ("ids", "lengths", "prompts"))
    at = np.arange(1, T + 1)
    targets = np.append(ids[:, 1:], np.full((len(ids), 1), PAD), 1)
    weights = ((at >= prompts[:, None]) & (at < lengths[:, None])).astype(np.float32)
    named = {"inputs": ids, "targets": targets, "weights": weights, "lengths": lengths}
    return {f"{prefix}{k}": x for k, x in named.items()}


def batch_of(name: str) -> dict[str, np.ndarray]:
    if name.startswith("kto"):
        batch = {**rows("ratings"), **rows("others", "kl_"), "label": FROZEN["labels"].astype(int)}
        return {k: x for k, x in batch.items() if "lengths" not in k}
    pairs = {k: np.stack(np.split(x, 2), 1) for k, x in rows("pairs").items()}
    return {**pairs, "margin": FROZEN["margin"] if name == "reward" else np.zeros(4, np.float32)}


def task_of(model, task):
    c = config_lib.new_config()
    c.model = {**model, "scan": False}
    c.task, c.init_from = task, "a folder"
    c.data = dict(name="preferences", seq_len=T)
    return tasks.build(helpers.filled(c))


def check(name, task, params, frozen, expected) -> None:
    """expected: {parameter: its gradient}."""

    def mean(params):
        (total, weight), _ = task.loss(params, {}, frozen, batch_of(name), jax.random.key(0), True)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    assert float(loss) == pytest.approx(float(FROZEN[f"{name}/loss"]), rel=1e-5)
    grads = named_leaves(grads)
    assert {*grads} == {*expected}
    for key, g in grads.items():
        want = expected[key]
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(g, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_trl(load, name):
    both = [load(f"{side}/") for side in ("policy", "reference")]
    (model, policy), (_, reference) = both[::-1] if name == "kto_reversed" else both
    task = task_of(model, dict(name="preference", **CASES[name]))
    frozen = {"reference": {"params": tree(reference)}} if task.frozen else {}
    check(name, task, tree(policy), frozen, load(f"{name}/grad/")[1])


def test_the_loss_of_a_reward_model_is_that_of_trl(load):
    model, policy = load("policy/")
    task = task_of(model, dict(name="reward", center=0.05))
    params = tree({n: x for n, x in policy.items() if not n.startswith("head/")})
    head = lambda x: {"kernel": x.T}
    grads = {n: x for n, x in load("reward/grad/")[1].items() if not n.startswith("head/")}
    grads["score/kernel"] = FROZEN["reward/grad/score.weight"].T
    check("reward", task, {**params, "score": head(FROZEN["score.weight"])}, {}, grads)
    assert json.loads(str(FROZEN["config"]))["pad_token_id"] == PAD


def test_a_reward_model_in_the_format_of_transformers(load, tmp_path):
    model, policy = load("policy/")
    params = {n: x for n, x in policy.items() if not n.startswith("head/")}
    params["score/kernel"] = FROZEN["score.weight"].T
    family = interop.family_of(model)
    architecture = family.architecture_of(params)
    assert architecture == "LlamaForSequenceClassification"
    options = dict(family=family, architecture=architecture, model=model, params=params)
    interop.write(tmp_path / "out", **options, task={"name": "reward"})
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    own = {n.removeprefix("policy/"): x for n, x in FROZEN.items() if n.startswith("policy/model.")}
    own["score.weight"] = FROZEN["score.weight"]
    assert {*tensors} == {*own}
    for name, x in own.items():
        np.testing.assert_array_equal(tensors[name], x)
    again = interop.read(str(tmp_path / "out"), "gpt", "")
    assert again.task == {"name": "reward"} and {*again.names} == {*params}
    for name, x in params.items():
        np.testing.assert_array_equal(again.load(name), x)
    file = tmp_path / "out" / "config.json"
    written = json.loads(file.read_text())
    assert written["id2label"] == {"0": "LABEL_0"} and written["architectures"] == [architecture]
    written["id2label"] = {"0": "good", "1": "bad"}
    file.write_text(json.dumps(written))
    with pytest.raises(UserError, match="its 2 outputs are those of a classifier"):
        interop.read(str(tmp_path / "out"), "gpt", "")
