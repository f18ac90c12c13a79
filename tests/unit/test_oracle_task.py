"""The oracle's task: its sequences, the files it reads, and refused settings."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import tasks
from bigjax.errors import UserError
from bigjax.parallel import mesh as mesh_lib
from bigjax.projects.seqgan import model as seqgan
from bigjax.projects.seqgan import oracle_data
from bigjax.train import program as program_lib
from tests import helpers
from tests.unit.test_seqgan import tiny


def load(cache, logged=None, **sections):
    """OracleText of the tiny config with changes."""
    c = tiny(**{**sections, "data": {"cache_dir": str(cache), **sections.get("data", {})}})
    return tasks.build(c).load_data(log=lambda text: (logged or []).append(text))


def sequences(text, split="train"):
    return text.split(split, batch_size=200, shuffle=False).batch_at(0)["tokens"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(arrays of the tiny oracle, folder of its sequences, OracleText)."""
    cache = tmp_path_factory.mktemp("oracle")
    text = load(cache)
    return oracle_data.oracle_arrays(tiny()), cache, text


def saved(path, arrays, names=None) -> str:
    np.savez(path, **dict(zip(names or [f"param_{i}" for i in range(15)], arrays)))
    return str(path)


def test_sequences_follow_the_distribution_of_the_oracle(drawn):
    arrays, _, text = drawn
    c, params = seqgan.oracle(arrays)
    splits = [sequences(text, split) for split in ("train", "valid", "test")]
    assert all(x.shape == (200, 4) for x in splits)
    assert (splits[0] != splits[1]).any() and (splits[1] != splits[2]).any()
    first = seqgan.Generator(c).apply({"params": params}, jnp.zeros((1, 1), jnp.int32))[0, 0]
    counts = np.bincount(np.concatenate(splits)[:, 0], minlength=30)
    p = np.asarray(jax.nn.softmax(first))
    assert (np.abs(counts - 600 * p) < 5 * np.sqrt(600 * p) + 1).all()


def test_cached_sequences_are_reused(drawn, monkeypatch):
    _, cache, text = drawn
    monkeypatch.setattr(oracle_data, "sample_texts", None)  # sampling would fail
    logged = ["it is not empty"]
    again = load(cache, logged)
    assert again.fingerprint == text.fingerprint and len(logged) == 1
    np.testing.assert_array_equal(sequences(again), sequences(text))
    with pytest.raises(TypeError):
        load(cache, data=dict(seed=1))


@pytest.mark.parametrize("change", [dict(seed=1), dict(sequences=201), dict(d_model=4)])
def test_sequences_depend_on_the_oracle(drawn, change):
    _, cache, text = drawn
    before, logged = len(os.listdir(cache)), ["it is not empty"]
    other = load(cache, logged, data=change)
    assert other.fingerprint != text.fingerprint and len(logged) == 2
    assert len(os.listdir(cache)) == before + 1
    if "sequences" not in change:  # more of the same sequences
        assert (sequences(other) != sequences(text)).any()


def test_an_oracle_from_a_file_equals_the_drawn_one(drawn, tmp_path, monkeypatch):
    arrays, cache, text = drawn
    path = saved(tmp_path / "oracle.npz", arrays)
    monkeypatch.setattr(oracle_data, "sample_texts", None)  # its sequences are cached
    assert load(cache, data=dict(params=path, d_model=99)).fingerprint == text.fingerprint


def bad_files(folder, arrays) -> dict:
    """{name: (path, words of the message)}"""
    path = lambda name: folder / name
    path("text.npz").write_text("these are no arrays")
    path("empty.npz").write_bytes(b"")
    np.save(path("one.npy"), arrays[0])
    content = pathlib.Path(saved(path("whole.npz"), arrays)).read_bytes()
    path("cut.npz").write_bytes(content[: len(content) // 2])
    changed = lambda i, x: [x if k == i else a for k, a in enumerate(arrays)]
    return {
        "missing": (path("nothing.npz"), ["nothing.npz", "cannot be read"]),
        "folder": (folder, ["cannot be read"]),
        "text": (path("text.npz"), ["text.npz", "cannot be read"]),
        "empty": (path("empty.npz"), ["empty.npz", "cannot be read"]),
        "one array": (path("one.npy"), ["one.npy"]),
        "cut": (path("cut.npz"), ["cut.npz", "cannot be read"]),
        "fewer": (saved(path("a.npz"), arrays[:14]), ["param_0 to param_14"]),
        "names": (saved(path("b.npz"), arrays, [f"w{i}" for i in range(15)]), ["w0", "param_14"]),
        "flat": (
            saved(path("c.npz"), changed(0, arrays[0].ravel())),
            ["param_0", "[words, width]"],
        ),
        "gate": (
            saved(path("d.npz"), changed(4, arrays[4][:, :3])),
            ["param_4", "(8, 3)", "(8, 8)"],
        ),
        "bias": (
            saved(path("e.npz"), changed(14, arrays[14][:-1])),
            ["param_14", "(29,)", "(30,)"],
        ),
        "not finite": (saved(path("f.npz"), changed(3, arrays[3] * np.nan)), ["param_3"]),
        "too large": (
            saved(path("h.npz"), changed(3, arrays[3].astype(np.float64) * 1e300)),
            ["param_3", "float64", "not finite real numbers in float32"],
        ),
        "texts": (saved(path("g.npz"), changed(3, np.array(["x"]))), ["param_3", "real number"]),
    }


@pytest.mark.parametrize(
    "which",
    [
        "missing",
        "folder",
        "text",
        "empty",
        "one array",
        "cut",
        "fewer",
        "names",
        "flat",
        "gate",
        "bias",
        "not finite",
        "too large",
        "texts",
    ],
)
def test_refused_oracle_files(drawn, tmp_path, which):
    path, words = bad_files(tmp_path, drawn[0])[which]
    with pytest.raises(UserError) as e:
        load(tmp_path, data=dict(params=str(path)))
    assert all(w in str(e.value) for w in (*words, "data.params")), e.value


def test_another_vocabulary_than_the_oracles_is_refused(drawn, tmp_path):
    path = saved(tmp_path / "oracle.npz", drawn[0])
    with pytest.raises(UserError, match="30 words, but model.vocab_size is 40"):
        load(tmp_path, data=dict(params=path), model=dict(vocab_size=40))


def test_sequences_of_another_vocabulary_are_refused(drawn, tmp_path):
    load(tmp_path)
    (path,) = tmp_path.glob("oracle-*.npz")
    np.savez(path, **{split: np.full((200, 4), 30) for split in ("train", "valid", "test")})
    with pytest.raises(UserError, match="word 30, outside the vocabulary of 30.*delete"):
        load(tmp_path)


def test_longer_sequences_than_the_model_reads_are_refused(tmp_path):
    with pytest.raises(UserError, match="data.seq_len=9 .* model.max_len=4"):
        load(tmp_path, data=dict(seq_len=9))


@pytest.mark.parametrize("key, value", [("seed", -1), ("sequences", 0), ("d_model", 0)])
def test_refused_oracle_settings(key, value):
    with pytest.raises(UserError, match=f"config.data.{key} is {value}"):
        helpers.filled(tiny(data={key: value}))


def test_a_reward_that_is_always_zero_is_refused():
    changes = dict(reward="constant", baseline="batch")
    with pytest.raises(UserError, match="is 0 everywhere"):
        tasks.build(tiny(task=changes))
    tasks.build(tiny(task={**changes, "likelihood": 0.1}))


def test_another_model_is_refused():
    c = tiny()
    with c.unlocked():
        c.model = dict(name="gpt")
    with pytest.raises(UserError, match="generator and a discriminator .*'gpt'"):
        tasks.build(helpers.filled(c))


def test_an_odd_batch_is_refused():
    with pytest.raises(UserError, match="must be even"):
        tasks.build(tiny(train={"batch_size": 15}))


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.accumulate", 2),
        ("train.ema", 0.9),
        ("train.debug_nans", True),
        ("optim.offload", True),
    ],
)
def test_keys_that_its_step_does_not_use_are_refused(key, value):
    section, _, name = key.partition(".")
    c, mesh = tiny(**{section: {name: value}}), mesh_lib.make_mesh({}, jax.devices()[:1])
    with pytest.raises(UserError, match=f"{key}={value}: .* not use this key, so it must be"):
        program_lib.make(c, tasks.build(c), mesh)
