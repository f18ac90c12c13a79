"""Reward models: the task, and scores of texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.data import chat_template
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.infer.scores import RewardModel
from bigjax.models import gpt
from bigjax.parallel import mesh as mesh_lib
from bigjax.trees import named_leaves
from tests import helpers
from tests.chats import turn
from tests.unit.test_conversation_rows import write
from tests.unit.test_preference_task import batch_of, params_of, run

BYTES = Bytes()
T = 48


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = [
        {"prompt": f"{i}", "chosen": "a" * (i + 1), "rejected": "b" * (2 * i + 1), "margin": i / 2}
        for i in range(8)
    ]
    return write(tmp_path_factory.mktemp("rewards") / "pairs.jsonl", rows)


def config_of(file, model=(), **options):
    c = config_lib.new_config()
    c.model = dict(name="gpt", vocab_size=264, max_len=T, d_model=8, n_layers=2, n_heads=2)
    c.model.update({"tie_embeddings": False, **dict(model)})
    c.task = dict(name="reward", **options)
    c.train.batch_size = 4
    c.data = dict(name="preferences", train=file, chat_template="plain", seq_len=T)
    c.data.tokenizer = dict(kind="bytes")
    c.data.update(valid_fraction=0.0, test_fraction=0.0)
    return helpers.filled(c)


@pytest.fixture(scope="module")
def made(file):
    task = tasks.build(config_of(file, center=0.1))
    return task, params_of(task), batch_of(task)


def plain_rewards(params, batch) -> np.ndarray:
    """Of the last tokens, by the features of the plain decoder."""
    c = gpt.Config(vocab_size=264, max_len=T, d_model=8, n_layers=2, n_heads=2)
    inputs = batch["inputs"]
    backbone = {k: x for k, x in params.items() if k != "score"}
    x = gpt.Model(c).apply({"params": backbone}, inputs.reshape(-1, T)).linear.x
    scores = (x @ params["score"]["kernel"])[..., 0].reshape(inputs.shape)
    last = (inputs != BYTES.pad_id).sum(-1) - 1
    return np.take_along_axis(np.asarray(scores), last[..., None], -1)[..., 0]


def test_the_loss_is_of_the_last_tokens_with_margins(made):
    task, params, batch = made
    loss, metrics, grads = run(task, params, {}, batch)
    r = plain_rewards(params, batch)
    want = np.log1p(np.exp(-(r[:, 0] - r[:, 1] - batch["margin"]))) + 0.1 * r.sum(-1) ** 2
    assert loss == pytest.approx(want.mean(), rel=1e-5)
    assert metrics["accuracy"] == (r[:, 0] > r[:, 1]).mean()
    assert metrics["margin"] == pytest.approx((r[:, 0] - r[:, 1]).mean(), rel=1e-4)
    np.testing.assert_allclose(task.outputs(params, {}, {}, batch), r, rtol=1e-5)
    # A last token with the id of the padding is read as well.
    other = {**batch, "inputs": np.where(batch["inputs"] == BYTES.pad_id, 7, batch["inputs"])}
    np.testing.assert_allclose(task.outputs(params, {}, {}, other), r, rtol=1e-5)
    names = [n for n, g in named_leaves(grads).items() if not jnp.abs(g).max() > 0]
    assert [n for n in names if "key/bias" not in n] == []
    padded = {k: np.concatenate([x, np.zeros_like(x)]) for k, x in batch.items()}
    assert run(task, params, {}, padded)[0] == pytest.approx(loss, rel=1e-5)


def test_its_parameters_are_those_of_the_decoder_and_the_head(made, file):
    task, _, _ = made
    decoder = tasks.build(helpers.filled(_causal(file)))
    own, plain = (
        {n: x.shape for n, x in named_leaves(jax.eval_shape(t.init, jax.random.key(0))).items()}
        for t in (task, decoder)
    )
    head = {"params/score/kernel": (8, 1)}
    assert own == {n: s for n, s in plain.items() if "params/head/" not in n} | head
    assert task.label_head == "score" and task.units_per_example == 2 * T
    assert 0 < task.flops_per_example < 2 * decoder.flops_per_example
    unrolled = tasks.build(config_of(file, model=dict(scan=False)))
    params = jax.jit(unrolled.init)(jax.random.key(0))["params"]
    assert "layer_1" in params["stack"] and params["score"]["kernel"].shape == (8, 1)


def _causal(file):
    c = config_of(file)
    with c.unlocked():
        c.task = dict(name="causal_lm")
        c.data = dict(name="text", seq_len=T)
    return c


def test_lora_trains_the_head_in_full(file):
    c = config_of(file)
    with c.unlocked():
        c.peft = dict(name="lora", base="a folder", rank=2)
    task = tasks.build(helpers.filled(c))
    shapes = named_leaves(jax.eval_shape(task.init, jax.random.key(0))["params"])
    assert {n.split("/")[0] for n in shapes} == {"stack", "score"}
    assert all("lora" in n for n in shapes if n.startswith("stack"))


def test_scores_of_texts(made):
    task, params, _ = made
    template = chat_template.read("plain", BYTES)
    mesh, lines = mesh_lib.make_mesh({}, jax.devices()[:1]), []
    model = RewardModel(task, mesh, (params, {}, {}), template, T, 4, lines.append)
    prompts = [[turn("user", "q" * (i + 1))] for i in range(7)]
    texts = ["a" * (5 - i % 5) for i in range(7)]
    got = model(prompts, texts)
    assert got.dtype == np.float32 and got.shape == (7,) and not lines
    for prompt, text, reward in zip(prompts, texts, got):
        (one,) = template.encode([{"messages": [*prompt, turn("assistant", text)]}])
        row = np.full((1, T), BYTES.pad_id)
        row[0, : len(one.ids)] = one.ids
        np.testing.assert_allclose(reward, plain_rewards(params, {"inputs": row})[0], rtol=1e-5)
    # The end of a long completion is cut, and a line says so once.
    long = model(prompts[:2], ["b" * 60, "b" * 70])
    first = len("User: q\nAssistant:") + 1
    row = np.full((1, T), BYTES.pad_id)
    (one,) = template.encode([{"messages": [*prompts[0], turn("assistant", "b" * 60)]}])
    row[0] = one.ids[:T]
    np.testing.assert_allclose(long[0], plain_rewards(params, {"inputs": row})[0], rtol=1e-5)
    assert len(lines) == 1 and f"is cut to {T - first}" in lines[0]
    with pytest.raises(UserError, match="prompt of completion 1 has .* there is no room"):
        model([[turn("user", "q" * 60)]], ["a"])
    with pytest.raises(UserError, match="7 prompts and 1 completions"):
        model(prompts, ["a"])
    assert model([], []).shape == (0,)
