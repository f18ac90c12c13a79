"""`bigjax embeddings`: trains word vectors on a config's data, to initialise its generator."""

from collections.abc import Callable
import os
from typing import Any

from etils import epath

from bigjax import data, modules, tasks
from bigjax.data import sources, unknown, word_vectors
from bigjax.data.skip_gram import SkipGramData
from bigjax.data.store import split_of
from bigjax.errors import UserError
from bigjax.train import skip_gram

MIN_COUNT = 5  # occurrences; rarer pieces get no vector


def write(config, path: str | None, passes: int, log: Callable[[str], None]) -> None:
    """Trains vectors of WordPiece pieces by skip-gram, and writes them to `path`.

    The text is that of data.sources, or the training split of other data. Pieces that continue a
    word start with ##. Raises UserError for a missing or unusable path, and the errors of the data.
    """
    if not path:
        raise UserError("--out is missing. Set --out=FILE to the file for the vectors.")
    if passes < 1:
        raise UserError(f"--passes is {passes}; it must be at least 1.")
    # Checked before minutes of work. A bucket has no folders that could be missing.
    if "://" not in path and not epath.Path(path).expanduser().parent.is_dir():
        raise UserError(
            f"--out={path} cannot be written: {epath.Path(path).parent} is not a folder. Create "
            "it, or choose another file."
        )
    if "://" not in path and not os.access(epath.Path(path).expanduser().parent, os.W_OK | os.X_OK):
        raise UserError(
            f"--out={path} cannot be written: you have no write permission in "
            f"{epath.Path(path).parent}. Choose a file in another folder."
        )
    if epath.Path(path).expanduser().is_dir():
        raise UserError(f"--out={path} is a folder. Choose a file.")
    kind = config.data.get("tokenizer", {}).get("kind", "")
    if kind != data.WordPiece.kind:
        raise UserError(
            f"data.tokenizer.kind is {kind!r}, but word vectors are trained for WordPiece pieces. "
            f"Set it to {data.WordPiece.kind!r}."
        )
    tokenizer, texts = _texts(config, log)
    pairs = SkipGramData(
        word_vectors.pieces_of(texts, tokenizer), seed=config.seed, min_count=MIN_COUNT
    )
    table = skip_gram.fit(
        pairs,
        modules.options(config, "model").d_model,
        passes * pairs.pass_steps,
        seed=config.seed,
        log=log,
    )
    word_vectors.write(path, word_vectors.WordVectors(pairs.words, table))
    log(f"Wrote {path}: {len(table):,} vectors of {table.shape[1]} numbers")


def _texts(config, log) -> tuple[data.WordPiece, list[str]]:
    """The tokenizer and the training texts of a config."""
    c = config.data
    if "sources" not in c:
        corpus: Any = tasks.build(config).load_data(log, splits=("train",))
        if not hasattr(corpus, "texts"):
            raise UserError(
                f"data.name={c.name!r} provides no texts for word vectors. Use a config with "
                "data.name='text'."
            )
        return corpus.tokenizer, corpus.texts("train")
    tokenizer = data.build_tokenizer(c, log, config.python_path)
    texts = []
    for name in sorted(c.sources):
        source = sources.from_config(name, c.sources[name], config.python_path)
        texts += _source_texts(c, name, source, tokenizer, log)
    return tokenizer, texts


def _source_texts(
    c, name: str, source: sources.Source, tokenizer: data.WordPiece, log
) -> list[str]:
    """The training texts of a source; logs the same statistics as training does."""
    counts: dict[str, int] = {}
    n_bytes, texts = 0, []
    for text in sources.documents(source, c.on_bad_utf8, c.cache_dir, counts, log):
        n_bytes += len(text.encode())
        if split_of(text, c.valid_fraction, c.test_fraction) == "train":
            texts.append(text)
    tokens = [unknown.count(tokenizer, ids) for ids in tokenizer.encode_batch(texts)]
    n_unknown, n_tokens = (sum(column) for column in zip(*tokens)) if tokens else (0, 0)
    log(
        f"data: {name} train {len(texts):,} documents {n_tokens:,} tokens; "
        f"{counts.get('bad_utf8', 0) / max(n_bytes, 1):.3%} of the bytes replaced"
        + unknown.share(tokenizer, n_unknown, n_tokens)
    )
    for line in unknown.warning(tokenizer, n_unknown, n_tokens, f"source {name!r}", texts):
        log(line)
    return texts
