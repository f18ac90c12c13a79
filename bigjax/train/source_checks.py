"""Checks that the parameters of another model mean the same in this run: labels and tokens."""

from collections.abc import Callable
import re

from etils import epath
import jax

from bigjax import paths
from bigjax.data import tokenizers
from bigjax.errors import UserError
from bigjax.train.init_from import Source
from bigjax.trees import named_leaves, path_name

_REMEDIES = {  # of another tokenizer
    **dict.fromkeys(
        ("config.init_from", "config.peft.base"), f"Set {tokenizers.KIND}='init_from' to use it"
    ),
    "the reference": "Both read the same tokens: set task.reference to a model with this run's "
    f"tokenizer, or {tokenizers.KIND} and data.tokenizer.path to the tokenizer of the reference",
}


def check_labels(
    source: Source, shapes, head: str, reset: str, labels, log: Callable[[str], None]
) -> None:
    """Raises UserError if the outputs of the source's head stand for other labels.

    shapes: of this run's parameters. head: Task.label_head.
    """
    name = f"{head}/kernel"
    loaded = name in source.shapes and name in named_leaves(shapes)
    if not loaded or tuple(labels) == source.labels or (reset and re.search(reset, name)):
        return
    if all(re.fullmatch(r"LABEL_\d+", label) for label in source.labels):
        log(
            f"note: the outputs of {name} have no label names in {source.where}; they are "
            f"used in order as {', '.join(labels)}"
        )
        return
    raise UserError(
        f"config.init_from={source.where!r} has a head {head!r} for the labels "
        f"{list(source.labels)}; this run has {list(labels)}. Set init_reset='^{head}' to "
        "initialise it from scratch, or task.labels to the source's labels."
    )


def check_adapter(source: Source, base: str) -> None:
    """Raises UserError for an adapter that was trained on a base with another fingerprint."""
    if source.frozen.get("base", base) != base:
        raise UserError(
            f"config.init_from={source.where!r} holds an adapter of another base than "
            "config.peft.base. Set peft.base to the model that it was trained on."
        )


def check_tokenizer(
    source: Source,
    axes,
    reset: str,
    tokenizer,
    log: Callable[[str], None],
    python_path: str = "",
    key: str = "config.init_from",
) -> None:
    """Raises UserError unless the source's parameters with a value per token were trained with this
    tokenizer.

    axes: the logical axes of this run's parameters; 'vocab' is that of tokens. python_path: of the
    config, for a tokenizer of one's own. key: names the source, one of _REMEDIES.
    """
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
    of_tokens = [path_name(path) for path, names in leaves if "vocab" in names]
    loaded = [n for n in of_tokens if n in source.shapes and not (reset and re.search(reset, n))]
    if tokenizer is None or not loaded:
        return
    if not source.tokenizer_kind:
        log(
            f"note: {source.where} has no tokenizer that bigjax supports, so its vocabulary is not "
            "compared with this run's"
        )
        return
    theirs = _tokenizer_of(source, tokenizer, python_path)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"The parameters of {key}={source.where!r} were trained with another "
            f"vocabulary ({theirs.kind}, {theirs.vocab_size:,} tokens) than this run's "
            f"({tokenizer.kind}, {tokenizer.vocab_size:,}). {_REMEDIES[key]}"
            + f", or init_reset='^({'|'.join(of_tokens)})' to initialise these parameters from "
            "scratch" * (key == "config.init_from") + "."
        )


def _tokenizer_of(source: Source, like, python_path: str):
    """The source's tokenizer. like: this run's, for an option that the files may not specify."""
    if paths.exists(epath.Path(source.tokenizer_path) / tokenizers.META_FILE):  # saved by a run
        return tokenizers.load(source.tokenizer_path, python_path)
    spec = {"kind": source.tokenizer_kind, "path": source.tokenizer_path}
    if hasattr(like, "lowercase"):
        spec["lowercase"] = like.lowercase
    return tokenizers.named(spec, lambda text: None)
