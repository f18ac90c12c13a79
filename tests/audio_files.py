"""Files with short recordings, and the section `data` that reads them."""

import io

import numpy as np
import soundfile

from bigjax import config, modules
from bigjax.data import audio

RATE = 8000


def section(tmp_path, **fields):
    """The section data."""
    c = config.new_config()
    fields = {
        "sample_rate": RATE,
        "max_seconds": 0.5,
        "seq_len": 32,
        "tokenizer": {"kind": "bytes"},
        "cache_dir": str(tmp_path / "cache"),
        "threads": 2,
    } | fields
    c.data = dict(name="audio", **fields)
    modules.fill(c)
    return c.data


def load(tmp_path, names=("train", "valid", "test"), lines=None, options=None, **fields):
    """options: of load_audio."""
    log = [].append if lines is None else lines.append
    return audio.load_audio(section(tmp_path, **fields), log=log, names=names, **options or {})


def whole(tmp_path, **fields):
    """The training split with all recordings."""
    return load(tmp_path, ("train",), valid_fraction=0.0, test_fraction=0.0, **fields)


def samples(i, n=800):
    """int16 [n] of recording i."""
    rng = np.random.default_rng(i)
    tone = 8000 * np.sin(np.arange(n) * (0.1 + 0.01 * (i % 50)))
    return (tone + 500 * rng.standard_normal(n)).astype(np.int16)


def content(audio, rate=RATE, kind="WAV", subtype=None):
    """The bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=kind, subtype=subtype)
    return file.getvalue()


def write(path, audio, rate=RATE, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype=subtype)
    return str(path)


def make_folder(folder, n=6, first=0, kind="wav"):
    """Recordings of samples(i) with the texts 'number i'."""
    for i in range(first, first + n):
        write(folder / f"{i:03d}.{kind}", samples(i))
        (folder / f"{i:03d}.txt").write_text(f"number {i}\n")
    return folder


def make_table(folder, n=6, first=0):
    """As make_folder, with the texts in a table."""
    lines = ["audio\ttext"]
    for i in range(first, first + n):
        write(folder / "clips" / f"{i:03d}.flac", samples(i))
        lines.append(f"clips/{i:03d}.flac\tnumber {i}")
    (folder / "list.tsv").write_text("\n".join(lines) + "\n")
    return str(folder / "list.tsv")


def every(batches):
    """All real rows of an evaluation."""
    parts = [batches.batch_at(i) for i in range(batches.n_batches)]
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return {k: x[joined["example"] >= 0] for k, x in joined.items()}
