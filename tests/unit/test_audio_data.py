"""Recordings with texts: splits, batches as functions of (seed, step), bad files, settings."""

import numpy as np
import pytest

from bigjax.data import audio, tokenizers
from bigjax.data.audio.augment import Augment
from bigjax.errors import UserError
from tests.audio_files import RATE, every, load, make_folder, make_table, samples, whole, write

ALL = dict(speed=0.2, gain=6.0, shift=0.1, noise=(5.0, 20.0))


def test_the_arrays_of_a_batch(tmp_path):
    data = whole(tmp_path, train=make_table(tmp_path, n=3), options=dict(prefix=lambda t: (7, 8)))
    batch = data.split("train", 5, shuffle=False).batch_at(0)
    assert {k: (x.shape, x.dtype.name) for k, x in batch.items()} == {
        "audio": ((5, 4000), "int16"),
        "audio_len": ((5,), "int32"),
        "targets": ((5, 32), "int32"),
        "weights": ((5, 32), "float32"),
        "example": ((5,), "int32"),
    }
    tokenizer = data.tokenizer
    assert batch["example"].tolist() == [0, 1, 2, -1, -1]
    assert batch["audio_len"].tolist() == [800, 800, 800, 0, 0]
    for i in range(3):
        np.testing.assert_array_equal(batch["audio"][i, :800], samples(i))
        ids = [7, 8, *tokenizer.encode(f"number {i}"), tokenizer.eos_id]
        assert batch["targets"][i].tolist() == ids + [tokenizer.pad_id] * (32 - len(ids))
        assert batch["weights"][i].tolist() == [1] * len(ids) + [0] * (32 - len(ids))
    assert not batch["audio"][:, 800:].any() and not batch["weights"][3:].any()
    assert (batch["targets"][3:] == tokenizer.pad_id).all()


def test_rows_and_inputs(tmp_path):
    table = make_table(tmp_path, n=3)
    data = whole(tmp_path, train=table)
    assert data.rows("train")[1] == {
        "file": f"{tmp_path}/clips/001.flac",
        "text": "number 1",
        "where": f"{table}:3",
    }
    inputs = data.inputs("train")
    assert len(inputs) == 3 and [len(x) for x in inputs[1:]] == [800, 800]
    np.testing.assert_array_equal(inputs[-1], samples(2))
    with pytest.raises(IndexError):
        inputs[3]


def test_training_batches_are_functions_of_seed_and_step(tmp_path):
    root = make_folder(tmp_path / "clips", n=11)
    data = whole(tmp_path, train=str(root), augment=ALL)
    batches = data.split("train", 4, seed=3)
    steps = [batches.batch_at(i) for i in range(6)]
    again = data.split("train", 4, seed=3)
    for i in (5, 2, 0, 3, 1, 4):  # in any order, as after a resume
        for name, x in again.batch_at(i).items():
            np.testing.assert_array_equal(x, steps[i][name])
        for rows in (slice(0, 2), slice(2, 4), slice(1, 2)):  # of one of several hosts
            for name, x in again.batch_at(i, rows).items():
                np.testing.assert_array_equal(x, steps[i][name][rows])
    example = np.concatenate([x["example"] for x in steps])
    assert sorted(example[:11]) == sorted(example[11:22]) == [*range(11)]
    heard = {x.tobytes() for step in steps[:5] for x in step["audio"]}
    assert len(heard) == 20  # each recording in another way in the second epoch
    other = data.split("train", 4, seed=4)
    assert not heard & {x.tobytes() for i in range(5) for x in other.batch_at(i)["audio"]}


def test_evaluation_does_not_change_recordings(tmp_path):
    root = make_folder(tmp_path / "clips", n=3)
    data = whole(tmp_path, train=str(root), augment=ALL)
    rows = every(data.split("train", 2, shuffle=False))
    np.testing.assert_array_equal(rows["audio"][:, :800], [samples(i) for i in range(3)])
    # Nor does training without changes.
    data = whole(tmp_path, train=str(root))
    batch = data.split("train", 3).batch_at(0)
    for example, x in zip(batch["example"], batch["audio"]):
        np.testing.assert_array_equal(x[:800], samples(int(example)))


def changed(rng=0, x=None, **fields):
    x = 0.1 * np.sin(np.arange(4000) * 0.3).astype(np.float32) if x is None else x
    return Augment(**fields)(x, np.random.default_rng(rng), RATE, 8000)


def test_each_change():
    x = changed()
    lengths = {len(changed(i, speed=0.2)) for i in range(50)}
    assert 3333 <= min(lengths) < 3500 and 4800 < max(lengths) <= 5000
    full = np.zeros(8000, np.float32)  # a slower one would be too long, and is not cut
    lengths = [len(changed(i, full, speed=0.2)) for i in range(20)]
    assert max(lengths) <= 8000 and sorted(lengths)[2] < sorted(lengths)[-3] < 8000
    levels = [
        20 * np.log10(np.abs(changed(i, gain=6.0)).max() / np.abs(x).max()) for i in range(50)
    ]
    assert -6.01 < min(levels) < -4 and 4 < max(levels) < 6.01
    for i in range(20):
        y = changed(i, shift=0.25)
        n = len(y) - len(x)
        assert 0 <= n <= 2000 and not y[:n].any()
        np.testing.assert_array_equal(y[n:], x)
    assert len(changed(1, full, shift=0.25)) == 8000
    noise = changed(noise=(10.0, 10.0)) - x
    assert 10 * np.log10(np.square(x).mean() / np.square(noise).mean()) == pytest.approx(
        10, abs=0.3
    )
    assert not changed(0, full, noise=(10.0, 10.0)).any()  # silence stays silent


def test_equal_texts_are_in_one_split(tmp_path):
    lines = ["audio\ttext"]
    for i in range(60):
        write(tmp_path / f"{i}.wav", samples(i, 10))
        lines.append(f"{i}.wav\tword {i % 20}")
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    options = dict(train=str(tmp_path / "list.tsv"), valid_fraction=0.3, test_fraction=0.2)
    data = load(tmp_path, **options)
    texts = {name: {row["text"] for row in data.rows(name)} for name in data.names}
    assert sum(map(len, texts.values())) == 20 and all(texts.values())
    assert sum(len(data.rows(name)) for name in data.names) == 60
    assert load(tmp_path, **options).fingerprint == data.fingerprint
    for other in ({"test_fraction": 0.1}, {"seq_len": 31}, {"max_seconds": 0.4}):
        assert load(tmp_path, **options | other).fingerprint != data.fingerprint
    assert (
        load(tmp_path, options=dict(prefix=lambda t: (1,)), **options).fingerprint
        != data.fingerprint
    )
    write(tmp_path / "0.wav", samples(0, 11))
    assert load(tmp_path, **options).fingerprint != data.fingerprint


def test_a_path_of_its_own_is_a_whole_split_also_if_it_is_that_of_train(tmp_path):
    root = str(make_folder(tmp_path / "clips", n=10))

    def sizes(**fields):
        data = load(tmp_path, train=root, **fields)
        return [len(data.rows(name)) for name in ("train", "valid", "test")]

    assert sizes(valid=root, test=root, valid_fraction=0.5, test_fraction=0.5) == [10, 10, 10]
    train, valid, test = sizes(valid=root, valid_fraction=0.5, test_fraction=0.3)
    assert valid == 10 and train + test == 10 and 0 < test < 10


def test_bad_recordings_have_no_weight_or_end_the_run(tmp_path):
    root = make_folder(tmp_path / "clips", n=10)
    (root / "002.wav").write_bytes(b"")
    raw = (root / "004.wav").read_bytes()
    (root / "004.wav").write_bytes(raw[:-100])
    alone = tmp_path / "alone"
    make_folder(alone, n=1)
    (alone / "000.wav").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 recording of the train data cannot be used; "):
        load(tmp_path, train=str(alone), valid=str(root), test=str(root))
    options = dict(train=str(root))
    with pytest.raises(UserError, match=r"002.wav: the file is empty. 2 of 10 recordings of the "):
        whole(tmp_path, **options)
    with pytest.raises(UserError, match=r"2 of 10 recordings .* cannot be used \(.*002.wav, .*004"):
        whole(tmp_path, **options, max_bad=0.1)
    lines = []
    data = whole(tmp_path, **options, max_bad=0.2, lines=lines)
    batches = data.split("train", 5, shuffle=False)
    rows = every(batches)
    assert rows["weights"].any(1).tolist() == [i not in (2, 4) for i in range(10)]
    assert rows["audio_len"].tolist() == [0 if i in (2, 4) else 800 for i in range(10)]
    assert "002.wav: the file is empty" in batches.examples.why(2)
    assert data.inputs("train")[2].shape == (0,) and len(data.inputs("train")[3]) == 800
    bad = [line for line in lines if "It has no weight" in line]
    assert len(bad) == 2 and "is cut off" in bad[1]


def test_damage_that_only_decoding_shows(tmp_path):
    x = samples(0, 4000)
    for name in ("a", "b"):
        path = write(tmp_path / f"{name}.flac", x)
        (tmp_path / f"{name}.txt").write_text("text")
    raw = bytearray((tmp_path / "b.flac").read_bytes())
    raw[-2000:-1000] = bytes(1000)
    (tmp_path / "b.flac").write_bytes(raw)
    data = whole(tmp_path, train=str(tmp_path))
    with pytest.raises(UserError, match=rf"{path}: the file is cut off or damaged"):
        data.split("train", 2).batch_at(0)
    data = whole(tmp_path, train=str(tmp_path), max_bad=0.5)
    batch = data.split("train", 2).batch_at(0)
    assert batch["weights"].any(1).tolist() == (batch["example"] == 0).tolist()


def test_long_recordings_are_bad_ones(tmp_path):
    root = make_folder(tmp_path / "clips", n=4)
    write(root / "001.wav", samples(1, 4001))
    with pytest.raises(UserError, match=r"001.wav: it is 0.5 s long \(4,001 samples .*max_bad=0 "):
        whole(tmp_path, train=str(root), truncate=True)  # it is of texts
    data = whole(tmp_path, train=str(root), max_bad=0.25)
    weights = data.split("train", 4, shuffle=False).batch_at(0)["weights"]
    assert weights.any(1).tolist() == [True, False, True, True]


def test_silent_recordings_are_used_and_reported(tmp_path):
    root = make_folder(tmp_path / "clips", n=3)
    write(root / "001.wav", 0 * samples(1))
    lines = []
    data = whole(tmp_path, train=str(root), lines=lines, augment=ALL)
    for step in range(3):
        assert data.split("train", 3).batch_at(step)["weights"].any(1).all()
    assert [line for line in lines if "samples are 0" in line] == [
        f"data: {root}/001.wav: all of its samples are 0. It is used as it is."
    ]


def test_long_texts(tmp_path):
    root = make_folder(tmp_path / "clips", n=3)
    (root / "001.txt").write_text("x" * 31)
    data = whole(tmp_path, train=str(root))
    assert np.diff(data.examples["train"].offsets).max() == 32
    lines, prefix = [], dict(prefix=lambda t: (1, 2))
    with pytest.raises(UserError, match="001.txt: the text is 34 tokens long and 32 are allowed"):
        whole(tmp_path, train=str(root), options=prefix)
    data = whole(tmp_path, train=str(root), options=prefix, truncate=True, lines=lines)
    ids = data.examples["train"].tokens_of(1)
    text, eos = data.tokenizer.encode("x" * 29), data.tokenizer.eos_id
    assert ids.tolist() == [1, 2, *text, eos]
    assert any("1 of 3 texts is truncated to 32 tokens" in line for line in lines)


def test_a_tokenizer_of_the_texts_or_one_that_is_given(tmp_path):
    root = make_folder(tmp_path / "clips", n=30)
    kind = dict(kind="wordpiece", vocab_size=40)
    data = load(tmp_path, ("test",), train=str(root), test_fraction=0.3, tokenizer=kind)
    assert data.tokenizer.kind == "wordpiece" and data.tokenizer.vocab_size <= 40
    given = tokenizers.named(dict(kind="bytes"))
    again = load(tmp_path, train=str(root), tokenizer=kind, options=dict(tokenizer=given))
    assert again.tokenizer is given


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(train=""), "data.train is empty. Set it to a table"),
        (dict(train="no/such"), "data.train='no/such': no such file or folder. Give a table"),
        (dict(train="morse:books"), "there is only 'morse:docstrings'"),
        (dict(max_seconds=0.00001), "max_seconds=1e-05 is less than a sample"),
        (dict(seq_len=1), "data.seq_len is 1: 0 tokens before each text, one of a text"),
        (dict(valid_fraction=0.8, test_fraction=0.4), "their sum at most 1"),
        (dict(augment=dict(noise=(1.0,))), r"noise is \(1.0,\); it has to be the lowest and the"),
        (dict(augment=dict(noise=(3.0, 1.0))), "the lowest and the highest signal-to-noise"),
        (dict(morse=dict(wpm=(30.0, 20.0))), "data.morse.wpm is .*the lowest and the highest"),
    ],
)
def test_bad_settings(tmp_path, fields, words):
    make_folder(tmp_path / "clips", n=3)
    with pytest.raises(UserError, match=words):
        load(tmp_path, **{"train": str(tmp_path / "clips")} | fields)


def test_a_split_of_nothing(tmp_path):
    root = make_folder(tmp_path / "clips", n=3)
    data = load(tmp_path, train=str(root), valid_fraction=0.0, test_fraction=0.0)
    with pytest.raises(UserError, match="the valid split is empty: no row fell into it"):
        data.split("valid", 2)
    with pytest.raises(UserError, match="the split 'test' was not loaded"):
        whole(tmp_path, train=str(root)).inputs("test")
    assert isinstance(data, audio.AudioData)
