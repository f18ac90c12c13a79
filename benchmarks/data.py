"""How fast text becomes tokens, and tokens become batches, on the host.

    python benchmarks/data.py [--json] [--bpe FOLDER] [--train-tokens-per-sec 2500]

Tokenizing speeds are megabytes of UTF-8 a second of CPU time, so for one core whatever the
machine has. `batch_at` runs in one thread. The comparison ("theirs") is 50 times what a training
run on this machine's CPU consumes: batches have to be made far faster than they are used.
"""

import argparse
import json
from pathlib import Path
import statistics
import tempfile
import time

import ml_collections

from bigjax.data import docstrings, load_text, tokenizers
from bigjax.data.tokenizers.bytes import Bytes

SEQ_LEN, BATCH_SIZE = 256, 32
HEADROOM = 50
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--bpe", default="", help="a folder with vocab.json and merges.txt")
    parser.add_argument(
        "--train-tokens-per-sec",
        type=float,
        default=2500.0,
        help="what training consumes on this machine",
    )
    parser.add_argument("--cache-dir", default="~/.cache/bigjax")
    args = parser.parse_args()
    texts = [record.text for record in docstrings.records(args.cache_dir)]
    corpus = load_text(_config(args.cache_dir))
    with tempfile.TemporaryDirectory() as folder:
        bpe = args.bpe or _train_bpe(texts[::4], folder)
        spec = ml_collections.ConfigDict({"kind": "bpe", "path": bpe})
        kinds = [corpus.tokenizer, tokenizers.build(spec, folder, None, ""), Bytes()]
    for one in kinds:
        rate = _tokenizing_mb_per_cpu_second(one, texts[::2])
        print(f"{one.kind:13s} of {one.vocab_size:6,} ids: {rate:8.2f} MB/s a core")
    ours = {packing: _batch_tokens_per_second(corpus, packing) for packing in (False, True)}
    for packing, rate in ours.items():
        print(
            f"batch_at, packing={packing!s:5s}: {rate / 1e6:8.2f} M tokens/s "
            f"({BATCH_SIZE} x {SEQ_LEN})"
        )
    theirs = HEADROOM * args.train_tokens_per_sec
    result = {
        "name": "data",
        "ours": ours[True],
        "theirs": theirs,
        "ratio": ours[True] / theirs,
        "unit": "tokens/s",
    }
    print(
        f"{result['ratio']:.1f} times the {theirs:,.0f} tokens/s that leave training "
        f"{HEADROOM} times as slow as its data"
    )
    if args.json:
        print(json.dumps(result))


def _config(cache_dir: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "sources": {"docs": {"kind": "docstrings"}},
            "tokenizer": {"kind": "sentencepiece", "path": "", "vocab_size": 4096},
            "seq_len": SEQ_LEN,
            "packing": True,
            "valid_fraction": 0.01,
            "test_fraction": 0.01,
            "on_bad_utf8": "replace",
            "cache_dir": cache_dir,
        }
    )


def _train_bpe(texts: list[str], folder: str) -> str:
    """A byte-level BPE of GPT-2's form: its own files are not among the dependencies."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, 16384, show_progress=False, special_tokens=["<|endoftext|>"])
    Path(folder).mkdir(exist_ok=True)
    bpe.save_model(folder)
    return folder


def _tokenizing_mb_per_cpu_second(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> float:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rates = []
    for _ in range(3):
        start = time.process_time()
        tokenizer.encode_batch(texts)
        rates.append(megabytes / (time.process_time() - start))
    return statistics.median(rates)


def _batch_tokens_per_second(corpus, packing: bool) -> float:
    corpus.packing = packing
    data = corpus.split("train", BATCH_SIZE, seed=0)
    rates = []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        for step in range(repeat * 100, repeat * 100 + 100):
            data.batch_at(step)
        rates.append(100 * BATCH_SIZE * SEQ_LEN / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    main()
