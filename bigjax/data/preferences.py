"""Preferences: from the config section `data` to batches of pairs of answers, or of rated ones."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from bigjax.bounds import POSITIVE, SHARE, at_least
from bigjax.data import chat_template, text, tokenizers, unknown
from bigjax.data.batches import ExampleBatches, Rows
from bigjax.data.chat_template import ChatTemplate, Encoded
from bigjax.data.conversation_rows import sources_of, with_system
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.preference_examples import Answers, begin_of, check_reference, encode
from bigjax.data.preference_rows import ANSWERS, Columns, read_parts
from bigjax.data.row_data import RowData, build_tokenizer, check_names, finish_line, log_warnings
from bigjax.data.row_plan import shuffled
from bigjax.data.store import SPLITS

for_model = text.for_model

_FORMAT = 1  # raise it when the same rows would give other examples


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'preferences'. The task decides between pairs of answers
    and rated answers."""

    train: str = ""  # FILE (.jsonl, .parquet), docstrings:questions
    # NAME: FILE, several of them in place of train
    mixture: dict[str, str] = dataclasses.field(default_factory=dict)
    # NAME: its share of the rows in training, relative to the others; 1 by default
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    valid: str = ""  # '' = a fraction of train, by a hash of the first question
    test: str = ""
    columns: Columns = Columns()
    system: str = ""  # the system prompt of prompts without one
    chat_template: str = ""  # a Jinja file, 'plain' or 'chatml'; '' = the tokenizer's own
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 512  # tokens of a prompt with an answer
    truncate: bool = False  # cut the ends of longer answers, else refuse them
    valid_fraction: float = 0.01  # of the rows of train, without data of its own
    test_fraction: float = 0.01
    cache_dir: str = LOCAL_CACHE  # trained tokenizers

    RANGES = {
        "seq_len": at_least(8),
        "weights": POSITIVE,
        "valid_fraction": SHARE,
        "test_fraction": SHARE,
    }
    MAY_CHANGE = ("cache_dir", "train", "mixture.*", "valid", "test")
    PATHS = ("chat_template",)
    DATA_PATHS = ("train", "mixture.*", "valid", "test")


class PreferenceBatches(ExampleBatches):
    """The rows of one split in batches of B rows, T = seq_len tokens for a prompt with an answer.

    inputs, targets int32 and weights float32, 1 where the target is of the answer, else 0:
    - pairs: [B, 2, T], the chosen answer first; lengths int32 [B, 2], the tokens of each; margin
      float32 [B];
    - ratings: [B, T]; label int32 [B], 1 for a desirable answer; kl_inputs, kl_targets and
      kl_weights [B, T], the same prompt with an answer to another one: that of the row, or of
      another row, by a permutation without fixed points that follows from the seed.
    With log-probabilities of the reference also reference float32 [B, 2], of ratings reference and
    kl_reference [B]. Rows of padding have no weights.
    """

    def __init__(
        self,
        answers: Answers,
        sources: Sequence[str],
        weights: Mapping[str, float],
        pad_id: int,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        name: str = "train",
        with_reference: bool = False,
    ) -> None:
        """sources: the names of those that answers.source counts. weights: of some of them, see
        ExampleBatches; 1 by default. Raises UserError for less than a batch of data."""
        self.answers, self.seq_len, self._pad_id = answers, seq_len, pad_id
        self._with_reference = with_reference
        self._order_of_sources = np.argsort(answers.source, kind="stable")
        counts = np.bincount(answers.source, minlength=len(sources))
        self._first = (np.cumsum(counts) - counts)[counts > 0]
        sizes = {source: int(n) for source, n in zip(sources, counts) if n}
        super().__init__(
            sizes,
            batch_size,
            seed,
            shuffle,
            name,
            weights={source: weights.get(source, 1.0) for source in sizes},
            fill=dict.fromkeys(("inputs", "targets", "kl_inputs", "kl_targets"), pad_id),
            unit="pairs" if answers.form == "pairs" else "ratings",
        )
        n, cycle = len(answers), shuffled(len(answers), seed)
        self._other = np.zeros(n, np.int64)  # the row whose answer is used to estimate the KL
        self._other[cycle] = np.roll(cycle, -1)

    def examples_at(self, step: int) -> list[str]:
        source, index = self._order(self._indices(step, None))
        return [f"{self.name}:{i}" for i in self._rows_of(source, index)]

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        return self.batch_of(self._rows_of(rows.source, rows.index))

    def _rows_of(self, source: np.ndarray, index: np.ndarray) -> np.ndarray:
        return self._order_of_sources[self._first[source] + index]

    def batch_of(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of the rows with these indices in `answers`."""
        answers, k = self.answers, self.answers.k
        reference = answers.reference[which]
        if answers.form == "pairs":
            flat = [answers.encoded[2 * i + j] for i in which for j in (0, 1)]
            batch = {name: x.reshape(-1, 2, self.seq_len) for name, x in self._arrays(flat).items()}
            lengths = np.array([len(one.ids) for one in flat], np.int32)
            batch |= {"lengths": lengths.reshape(-1, 2), "margin": answers.value[which]}
            return batch | ({"reference": reference} if self._with_reference else {})
        batch = self._arrays([answers.encoded[k * i] for i in which])
        batch["label"] = answers.value[which].astype(np.int32)
        others = self._arrays([self._mismatched(i) for i in which])
        batch |= {f"kl_{name}": x for name, x in others.items()}
        if self._with_reference:
            batch |= {"reference": reference[:, 0], "kl_reference": reference[:, 1]}
        return batch

    def _mismatched(self, i: int) -> Encoded:
        answers = self.answers
        if answers.k == 2:
            return answers.encoded[2 * i + 1]
        own, other = answers.encoded[i], answers.encoded[self._other[i]]
        parts = [
            (x[: begin_of(own)], y[begin_of(other) :])
            for x, y in ((own.ids, other.ids), (own.learned, other.learned))
        ]
        return Encoded(*(np.concatenate(part)[: self.seq_len] for part in parts))

    def _arrays(self, rows: Sequence[Encoded]) -> dict[str, np.ndarray]:
        shape = len(rows), self.seq_len
        inputs, targets = (np.full(shape, self._pad_id, np.int32) for _ in range(2))
        weights = np.zeros(shape, np.float32)
        for i, (ids, learned) in enumerate(rows):
            inputs[i, : len(ids)] = ids
            targets[i, : len(ids) - 1] = ids[1:]
            weights[i, : len(ids) - 1] = learned[1:]
        return {"inputs": inputs, "targets": targets, "weights": weights}


class PreferenceData(RowData):
    """Preferences read by `load_preferences`: their `template`, and as all RowData.

    end_id: the token that ends an answer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        rows: dict[str, list],
        examples: dict[str, Answers],
        data: Any,
        form: str,
        with_reference: bool,
    ) -> None:
        self.template, self._data, self._with_reference = template, data, with_reference
        self.end_id, tokenizer = template.end_ids[0], template.tokenizer
        self._sources = [*sources_of(data)]
        settings = [_FORMAT, tokenizer.fingerprint, template.fingerprint, data.seq_len]
        settings += [form, with_reference, sorted(data.weights.items())]
        super().__init__(tokenizer, rows, examples, settings, lambda answers: answers.arrays())

    def batches(self, name: str, **options: Any) -> PreferenceBatches:
        d, answers = self._data, self.examples[name]
        names = self._sources if name == "train" else [name]
        if name != "train":  # of all sources, each row once
            answers = dataclasses.replace(answers, source=np.zeros_like(answers.source))
        more = dict(with_reference=self._with_reference, name=name, **options)
        return PreferenceBatches(
            answers, names, d.weights, self.tokenizer.pad_id, d.seq_len, **more
        )

    def prompt_ids(self, question: str) -> list[int]:
        """The token ids before the answer to a question."""
        messages = with_system([{"role": "user", "content": question}], self._data)
        return self.template.prompt(messages)

    def summary(self) -> str:
        """Rows and tokens of each split, one line each."""
        lines = []
        for name, a in self.examples.items():
            n = sum(len(one.ids) for one in a.encoded)
            what = "pairs" if a.form == "pairs" else "ratings"
            line = f"data: {name:5s} {len(a):9,} {what} {n:12,} tokens"
            if len(a):
                longest = max(len(one.ids) for one in a.encoded)
                line += f"; mean {n / len(a.encoded):.1f}, longest {longest}"
                if a.form == "ratings":
                    line += f"; {a.value.mean():.1%} desirable"
                line += unknown.share(self.tokenizer, a.n_unknown, a.n_text)
            lines.append(line)
        return "\n".join(lines)


def load_preferences(
    data: Any,
    form: str,
    *,
    with_reference: bool = False,
    tokenizer: tokenizers.Tokenizer | None = None,
    log: Callable[[str], None] = print,
    names: Sequence[str] = SPLITS,
    python_path: str = "",
    template: str = "",
) -> PreferenceData:
    """Reads and encodes the splits `names` of `data.train` or `data.mixture`, `data.valid` and
    `data.test`.

    Args:
      data: the config section `data`.
      form: 'pairs' or 'ratings'.
      with_reference: whether the rows need the log-probabilities of the reference.
      tokenizer: used instead of the config's (a trained model has its own); that one is trained
        on the training rows, and cached, if its path is empty.
      log: gets a few lines for people.
      names: the splits to load.
      python_path: of the config, for a tokenizer of one's own.
      template: the content of data.chat_template, if it is known.

    Raises UserError for anything wrong with the config, the rows, the template or the tokenizer.
    """
    start = time.monotonic()
    names = check_names(names)
    needed = [name for name in SPLITS if name in names or name == "train" and tokenizer is None]
    rows = read_parts(data, form, needed)
    if tokenizer is None:
        own = _texts(rows.get("train", []))
        tokenizer = build_tokenizer(data, own, "preferences", log, python_path)
    chat = chat_template.read(data.chat_template, tokenizer, chat_template.DATE, template)
    encoded = {name: encode(rows[name], data, form, chat) for name in names}
    kept, examples = ({k: x[i] for k, x in encoded.items()} for i in (0, 1))
    if with_reference:
        for name in names:
            check_reference(kept[name], examples[name], data)
    loaded = PreferenceData(chat, kept, examples, data, form, with_reference)
    log(loaded.summary())
    log_warnings(data, loaded, [], lambda answers: answers.lines, _texts, log)
    log(f"data: {finish_line(loaded, time.monotonic() - start)}")
    return loaded


def _texts(rows: Sequence[dict[str, Any]]) -> list[str]:
    keys = [key for keys in ANSWERS.values() for key in keys]
    every = ([*row["messages"], *(row[key] for key in keys if key in row)] for row in rows)
    return [f"{m['role'].capitalize()}: {m['content']}" for part in every for m in part]
