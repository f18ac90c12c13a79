"""bigjax.data.loader, order, packing and corpus: batches as a function of (seed, step)."""

import gc
import threading
import time

import ml_collections
import numpy as np
import pytest

from bigjax.data import TextBatches, build_tokenizer, iterate, load_text, load_tokenizer
from bigjax.data import store as S
from bigjax.data.packing import make_batch
from bigjax.data.text import for_model
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError

BOS, EOS, PAD = 256, 257, 258


def stream(tmp_path, texts, split="train", name="mine"):
    store = S.build_store(lambda counts: iter(texts), name, Bytes(), 0, 0, str(tmp_path), name)
    return store.split(split)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """400 documents of 5 to 8 tokens each: about 37 examples of 64 tokens."""
    return stream(tmp_path_factory.mktemp("cache"), [str(i * 7) for i in range(400)])


def train(stream_, **kwargs):
    arguments = {"seq_len": 64, "batch_size": 8, "seed": 3, **kwargs}
    return TextBatches({"a": stream_}, Bytes(), **arguments)


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_make_batch_by_hand():
    """Two rows of five: `b c eos | bos d eos` cut from the middle, and `bos a eos` with padding."""
    tokens = np.array([[98, 99, EOS, BOS, 100, EOS], [BOS, 97, EOS, PAD, PAD, PAD]], np.int32)
    is_first = tokens == BOS
    packed = make_batch(tokens, is_first, np.array([6, 3]), Bytes().token_bytes, True)
    equal(
        packed,
        {
            "inputs": [[98, 99, EOS, BOS, 100], [BOS, 97, EOS, PAD, PAD]],
            "targets": [[99, EOS, BOS, 100, EOS], [97, EOS, PAD, PAD, PAD]],
            "weights": [[1, 1, 0, 1, 1], [1, 1, 0, 0, 0]],
            "segment_ids": [[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]],
            "positions": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]],
            "target_bytes": [2, 1],
        },
    )
    dtypes = {key: value.dtype for key, value in packed.items()}
    assert dtypes.pop("weights") == np.float32 and set(dtypes.values()) == {np.dtype(np.int32)}
    loose = make_batch(tokens, is_first, np.array([6, 3]), Bytes().token_bytes, False)
    assert loose.keys() == {"inputs", "targets", "weights", "target_bytes"}
    assert loose["weights"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    empty = make_batch(tokens, is_first, np.array([0, 0]), Bytes().token_bytes, True)
    assert not any(empty[key].any() for key in ("weights", "segment_ids", "target_bytes"))


def test_batch_is_a_pure_function_of_seed_and_step(numbers):
    one, two = train(numbers), train(numbers)
    late = one.batch_at(1000)
    equal(one.batch_at(3), two.batch_at(3))
    equal(late, two.batch_at(1000))
    assert (train(numbers, seed=4).batch_at(3)["inputs"] != two.batch_at(3)["inputs"]).any()
    equal(train(numbers, seed=-1).batch_at(0), train(numbers, seed=-1).batch_at(0))


def test_far_steps_cost_what_near_ones_do(numbers):
    data = train(numbers)

    def seconds(step):
        start = time.perf_counter()
        data.batch_at(step)
        return time.perf_counter() - start

    near = min(seconds(step) for step in range(20))
    far = min(seconds(10**12 + step) for step in range(20))
    assert far < 20 * near + 0.01


def examples_of(data, first, count):
    """The examples' first inputs and targets, in the order they come."""
    batches = [data.batch_at(step) for step in range(first // 8, (first + count) // 8)]
    return [
        np.concatenate([inputs, targets]).tobytes()
        for batch in batches
        for inputs, targets in zip(batch["inputs"], batch["targets"])
    ]


def test_each_epoch_has_every_example_once_in_another_order(tmp_path):
    data = train(stream(tmp_path, [f"{i:03d}" * 21 + "x" for i in range(80)]))  # 66 tokens each
    assert data.n_examples == 80 * 66 // 64 and data.epoch_steps == data.n_examples / 8
    n = data.n_examples - data.n_examples % 8
    assert n == data.n_examples - 2 and data.n_batches == n // 8
    both = examples_of(data, 0, 8 * 21)[: 2 * data.n_examples]
    one, two = both[: data.n_examples], both[data.n_examples :]
    assert len(set(one)) == len(one) and set(one) == set(two) and one != two
    tokens = np.frombuffer(b"".join(one), np.int32).reshape(len(one), 2, 64)[:, 0]
    assert (np.sort(tokens.reshape(-1)) == np.sort(data._streams[0].window(0, 64 * len(one)))).all()


def test_rows_are_slices_of_the_global_batch(numbers):
    for data in (train(numbers), train(numbers, shuffle=False, batch_size=50)):
        batch = data.batch_at(0)
        for rows in (
            slice(0, 4),
            slice(4, 8),
            slice(7, 8),
            slice(None, 3),
            slice(5, None),
            slice(None),
        ):
            equal(data.batch_at(0, rows), {key: value[rows] for key, value in batch.items()})


@pytest.mark.parametrize("rows", [slice(0, 9), slice(4, 4), slice(-1, 8), slice(0, 8, 2)])
def test_rows_out_of_range(numbers, rows):
    with pytest.raises(UserError, match=r"batch_at: rows .* global batch of 8; allowed"):
        train(numbers).batch_at(0, rows)


def test_steps_out_of_range(numbers):
    with pytest.raises(UserError, match="no batch -1; allowed: any from 0 on"):
        train(numbers).batch_at(-1)
    data = train(numbers, shuffle=False)
    with pytest.raises(UserError, match=f"no batch {data.n_batches}; allowed: 0 to"):
        data.batch_at(data.n_batches)


@pytest.mark.parametrize("seq_len, batch_size", [(64, 8), (7, 5), (100_000, 2)])
def test_evaluation_covers_every_token_once(numbers, seq_len, batch_size):
    data = train(numbers, shuffle=False, seq_len=seq_len, batch_size=batch_size, packing=False)
    batches = [data.batch_at(step) for step in range(data.n_batches)]
    assert all(batch["inputs"].shape == (batch_size, seq_len) for batch in batches)
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
    tokens = numbers.window(0, numbers.n_tokens)
    np.testing.assert_array_equal(targets, tokens[1:])
    assert sum(batch["target_bytes"].sum() for batch in batches) == numbers.n_bytes
    assert data.epoch_steps == data.n_batches == -(-data.n_examples // batch_size)


def test_evaluation_with_packing_counts_all_bytes(numbers):
    data = train(numbers, shuffle=False)
    batches = [data.batch_at(step) for step in range(data.n_batches)]
    assert sum(batch["target_bytes"].sum() for batch in batches) == numbers.n_bytes
    n_weighted = sum(batch["weights"].sum() for batch in batches)
    assert n_weighted == numbers.n_tokens - numbers.n_documents
    last = batches[-1]
    used = data.n_examples % 8
    assert used and not last["weights"][used:].any() and not last["segment_ids"][used:].any()
    assert (last["inputs"][used:] == PAD).all()


def test_segments_are_the_documents(numbers):
    batch = train(numbers).batch_at(5)
    for row in range(8):
        inputs, segments = batch["inputs"][row], batch["segment_ids"][row]
        positions = batch["positions"][row]
        expected = 1
        for j in range(64):
            if j and inputs[j] == BOS:
                expected += 1
            assert segments[j] == expected
            assert positions[j] == (0 if j == 0 or inputs[j] == BOS else positions[j - 1] + 1)


def test_mixture_proportions_and_separate_epochs(tmp_path):
    streams = {
        name: stream(tmp_path, [letter * 62] * n, name=name)  # 64 tokens a document
        for name, letter, n in (("a", "a", 300), ("b", "b", 30), ("c", "c", 90))
    }
    data = TextBatches(streams, Bytes(), 64, 10, weights={"a": 1, "b": 2.5, "c": 0.5})
    counts = {"a": 0, "b": 0, "c": 0}
    for step in range(100):
        for row in data.batch_at(step)["inputs"]:
            letters = row[row < 256]
            counts[chr(np.bincount(letters).argmax())] += 1
    assert abs(counts["a"] - 250) < 5 and abs(counts["b"] - 625) < 5 and abs(counts["c"] - 125) < 5
    assert data.n_examples == 299 + 29 + 89 and data.epoch_steps == data.n_examples / 10
    other = TextBatches(streams, Bytes(), 64, 10, weights={"a": 2, "b": 5, "c": 1})
    equal(data.batch_at(77), other.batch_at(77))  # weights are relative
    equal(
        data.batch_at(77, slice(3, 7)),
        {key: value[3:7] for key, value in data.batch_at(77).items()},
    )
    evaluation = TextBatches(streams, Bytes(), 64, 10, shuffle=False)
    total = sum(evaluation.batch_at(i)["target_bytes"].sum() for i in range(evaluation.n_batches))
    assert total == sum(one.n_bytes for one in streams.values()) == 62 * 420


def test_errors_say_what_to_change(tmp_path, numbers):
    with pytest.raises(
        UserError,
        match=r"has 34 examples of 64 tokens, and a batch has 100\. "
        r"Lower train.batch_size",
    ):
        train(numbers, batch_size=100)
    with pytest.raises(UserError, match=r"source 'a' has [\d,]+ tokens, and one example .* 10,001"):
        train(numbers, seq_len=10_000)
    empty = S.build_store(lambda counts: iter(["x"]), "y", Bytes(), 0, 0, str(tmp_path), "y")
    with pytest.raises(UserError, match="the valid split of a is empty.*Raise data.valid_fraction"):
        train(empty.split("valid"), shuffle=False, name="valid")
    for weight in (0, -1, None, float("nan")):
        with pytest.raises(UserError, match=r"data\.sources\.a\.weight is .*positive"):
            train(numbers, weights={"a": weight})
    with pytest.raises(UserError, match="data.seq_len is 0"):
        train(numbers, seq_len=0)
    with pytest.raises(UserError, match="batch size is 0"):
        train(numbers, batch_size=0)


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("bigjax-data")]


def test_iterate_gives_the_batches_in_order_with_rows(numbers):
    data = train(numbers)
    batches = list(iterate(data.batch_at, 5, 9, slice(2, 4)))
    assert len(batches) == 4
    for step, batch in zip(range(5, 9), batches):
        equal(batch, data.batch_at(step, slice(2, 4)))
    assert list(iterate(data.batch_at, 5, 5)) == [] and not data_threads()


def test_iterate_works_ahead_but_not_far():
    steps = []
    batches = iterate(lambda step, rows: steps.append(step) or step, 0, None, buffer_size=3)
    assert next(batches) == 0
    deadline = time.monotonic() + 5
    while len(steps) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert steps == [0, 1, 2, 3]
    batches.close()
    assert not data_threads()


def test_iterate_hands_on_errors_and_ends_its_thread():
    def batch_at(step, rows):
        if step == 2:
            raise UserError("bad batch")
        return step

    batches = iterate(batch_at, 0, 10)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="bad batch"):
        next(batches)
    assert not data_threads()


@pytest.mark.parametrize("begin", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_dropped_iterator_ends_its_thread(begin):
    batches = iterate(lambda step, rows: step)
    if begin:
        next(batches)
    del batches
    gc.collect(1)  # the oldest objects are those of other tests
    deadline = time.monotonic() + 5
    while data_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not data_threads()


def config(tmp_path, **kwargs):
    text = tmp_path / "text.txt"
    if not text.exists():
        text.write_text(
            "\n\n".join(f"paragraph {i} says {i * i} things. " * 30 for i in range(300))
        )
        (tmp_path / "lines.jsonl").write_text(
            "".join(f'{{"body": "line {i} of it"}}\n' for i in range(300))
        )
    return ml_collections.ConfigDict(
        {
            "sources": {
                "mine": {"kind": "text", "path": str(text)},
                "lines": {
                    "kind": "jsonl",
                    "path": str(tmp_path / "lines.jsonl"),
                    "field": "body",
                    "name": "",
                    "split": "train",
                    "weight": 0.25,
                },
            },
            "tokenizer": {"kind": "sentencepiece", "path": "", "vocab_size": 300},
            "seq_len": 32,
            "packing": True,
            "valid_fraction": 0.05,
            "test_fraction": 0.05,
            "on_bad_utf8": "replace",
            "cache_dir": str(tmp_path / "cache"),
            **kwargs,
        }
    )


def test_the_row_length_of_an_imported_model():
    assert for_model({"max_len": 1024}) == {"seq_len": 512}
    assert for_model({"name": "my_lab.mixer"}) == {}  # it has no limit


def test_load_text(tmp_path):
    lines = []
    corpus = load_text(config(tmp_path), str)
    again = load_text(config(tmp_path), lines.append)
    assert corpus.fingerprint == again.fingerprint
    assert corpus.weights == {"lines": 0.25, "mine": 1.0} and list(corpus.stores) == [
        "lines",
        "mine",
    ]
    equal(corpus.split("train", 4, seed=1).batch_at(9), again.split("train", 4, seed=1).batch_at(9))
    valid = corpus.split("valid", 4)
    assert not valid.shuffle and corpus.split("train", 4).shuffle
    assert "data: lines test" in lines[0] and "data: mine train" in lines[0]
    assert "tokenizer sentencepiece of 300 ids" in lines[1]
    row = valid.batch_at(0)["inputs"][0]
    assert corpus.tokenizer.decode(row).startswith("line ")


def test_fingerprint_changes_with_text_tokenizer_and_split(tmp_path):
    fingerprints = {
        load_text(config(tmp_path), str).fingerprint,
        load_text(config(tmp_path, valid_fraction=0.06), str).fingerprint,
        load_text(config(tmp_path, tokenizer={"kind": "bytes"}), str).fingerprint,
    }
    with open(tmp_path / "text.txt", "a") as f:
        f.write("more")
    fingerprints.add(load_text(config(tmp_path), str).fingerprint)
    assert len(fingerprints) == 4


def test_load_text_reports_bad_utf8_and_refuses_a_bad_config(tmp_path):
    lines = []
    config(tmp_path)
    with open(tmp_path / "text.txt", "ab") as f:
        f.write(b"\xff")
    load_text(config(tmp_path), lines.append)
    assert "1 byte sequences were not UTF-8" in lines[1]
    with pytest.raises(UserError, match="byte .*0xFF. is not UTF-8"):
        load_text(config(tmp_path, on_bad_utf8="refuse"), str)
    with pytest.raises(UserError, match="data.sources is empty"):
        load_text(config(tmp_path, sources={}), str)


def test_closing_does_not_wait_for_the_whole_buffer():
    steps = []

    def batch_at(step, rows):
        steps.append(step)
        time.sleep(0.02)

    batches = iterate(batch_at, buffer_size=50)
    next(batches)
    batches.close()
    assert len(steps) < 10 and not data_threads()


def test_a_trained_model_brings_its_own_tokenizer(tmp_path):
    data = config(tmp_path)
    build_tokenizer(data, str).save(tmp_path / "run")
    own = load_tokenizer(tmp_path / "run")
    data.tokenizer = {"kind": "bytes"}
    corpus = load_text(data, str, tokenizer=own)
    assert corpus.tokenizer is own
    assert corpus.fingerprint == load_text(config(tmp_path), str).fingerprint
