"""Whisper's tokenizer (https://arxiv.org/abs/2212.04356): GPT-2's byte-level BPE with ids for
languages, tasks and times, which the files of a Hugging Face folder name."""

from collections.abc import Mapping
import functools
import json
import re
from typing import Any

from bigjax.data.text_files import read_text
from bigjax.data.tokenizers import Config as Config
from bigjax.data.tokenizers.base import Training, hash_of
from bigjax.data.tokenizers.bpe import ByteLevelBpe, read_bpe_files
from bigjax.errors import UserError
from bigjax.json_text import added_tokens, check_pieces, shown

STEP = 0.02  # seconds from one timestamp to the next
N_TIMESTAMPS = 1501  # from 0 to 30 s, where the files do not list them
ADDED, SETTINGS = "added_tokens.json", "generation_config.json"
_SPECIAL = re.compile(r"<\|.+\|>")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_CONTROL = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev")
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # today's name, and that of older folders
_NEEDED = ("<|endoftext|>", *(f"<|{name}|>" for name in _CONTROL), "<|notimestamps|>")
_SYMBOLS = '" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- ---'
_SYMBOLS += " -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
_MUSIC = "♩♪♫♬♭♮♯"  # may be several ids, of which the first belongs to signs like these


class Whisper(ByteLevelBpe):
    """special: {text: id} of all special tokens. first_timestamp: the id of <|0.00|>, which those
    of later times follow. no_speech_id: of audio without speech. languages: {code, such as 'en':
    id}. multilingual: whether a language and a task come before a text. bos, eos and pad are
    <|endoftext|>."""

    kind = "whisper"

    def __init__(
        self,
        vocab: bytes,
        merges: bytes,
        added: Mapping[str, int],
        settings: Mapping[str, Any],
        name: str = "the Whisper folder",
    ) -> None:
        """settings: of generation_config.json, {} without one."""
        super().__init__(vocab, merges, name, added)
        table = {**json.loads(self._vocab), **added}
        no_speech = next((text for text in _NO_SPEECH if text in table), _NO_SPEECH[0])
        if missing := [text for text in (*_NEEDED, no_speech) if text not in table]:
            raise UserError(
                f"{name} is not a tokenizer of Whisper: it has no {', '.join(missing)}. Use its "
                "vocab.json, merges.txt and added_tokens.json (or tokenizer.json)."
            )
        self._settings = dict(settings)
        self.special = {t: i for t, i in table.items() if t in added or _SPECIAL.fullmatch(t)}
        self.no_speech_id = table[no_speech]
        self.first_timestamp = table.get("<|0.00|>", table["<|notimestamps|>"] + 1)
        if "<|0.00|>" not in table:
            self.pieces += [b""] * (self.first_timestamp + N_TIMESTAMPS - len(self.pieces))
        codes = ((_LANGUAGE.fullmatch(text), i) for text, i in self.special.items())
        self.languages = {code[1]: i for code, i in codes if code}
        own = self.eos_id != 50256  # which is that of GPT-2, used for English only
        self.multilingual = bool(settings.get("is_multilingual", own))
        self.fingerprint = hash_of("whisper", self.fingerprint, self.files()[ADDED])

    def start(
        self, language: str = "", task: str = "transcribe", *, timestamps: bool = False
    ) -> list[int]:
        """The ids before a text: <|startoftranscript|>, if the model is multilingual the language
        and the task, and <|notimestamps|> unless times are wanted. Raises UserError for an unknown
        language or task, or one that an English-only model lacks."""
        ids = [self.special["<|startoftranscript|>"]]
        if self.multilingual:
            if language not in self.languages or task not in ("transcribe", "translate"):
                raise UserError(
                    f"language={language!r} and task={task!r} are not of this tokenizer; languages "
                    f"are {', '.join(self.languages)}, tasks transcribe and translate."
                )
            ids += [self.languages[language], self.special[f"<|{task}|>"]]
        elif language not in ("", "en") or task != "transcribe":
            raise UserError(
                f"language={language!r} and task={task!r}: this tokenizer is that of a model for "
                "English only, which transcribes. Omit them, or use a multilingual model."
            )
        return ids if timestamps else [*ids, self.special["<|notimestamps|>"]]

    def seconds(self, i: int) -> float | None:
        """The time that an id stands for, in seconds; None for one that is no timestamp."""
        n = i - self.first_timestamp
        return round(n * STEP, 2) if 0 <= n < self.vocab_size - self.first_timestamp else None

    @functools.cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that the published decoding never writes: of signs that are not spoken, and special
        ones. From generation_config.json, else as in the authors' code."""
        if isinstance(given := self._settings.get("suppress_tokens"), list):
            return tuple(sorted({i for i in given if type(i) is int and 0 <= i < self.vocab_size}))
        first = lambda text: int(self.encode(text)[0])
        ids = {first(" -"), first(" '")}  # within words they are allowed
        for symbol in (*_SYMBOLS.split(), *_MUSIC):
            for tokens in self.encode_texts([symbol, " " + symbol]):
                if len(tokens) == 1 or symbol in _MUSIC:
                    ids.add(tokens[0])
        control = {self.special[f"<|{name}|>"] for name in _CONTROL}
        return tuple(sorted(ids | control | {self.no_speech_id}))

    @functools.cached_property
    def suppressed_first(self) -> tuple[int, ...]:
        """Ids with which no text begins: a space, and the end."""
        return tuple(sorted({int(self.encode(" ")[0]), self.eos_id}))

    def generation_config(self, max_len: int | None) -> dict[str, Any]:
        """What transformers' generate reads of generation_config.json: that of this tokenizer's
        folder, or by the tokens. max_len: of the model."""
        if self._settings:
            return self._settings
        ids = self.special
        of_tasks = {}
        if self.multilingual:
            of_tasks = {
                "lang_to_id": {f"<|{code}|>": i for code, i in self.languages.items()},
                "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
            }
        return of_tasks | {
            "begin_suppress_tokens": list(self.suppressed_first),
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), self.eos_id),
            "decoder_start_token_id": ids["<|startoftranscript|>"],
            "is_multilingual": self.multilingual,
            "max_initial_timestamp_index": 50,
            **({"max_length": max_len} if max_len else {}),
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "prev_sot_token_id": ids["<|startofprev|>"],
            "return_timestamps": False,
            "suppress_tokens": list(self.suppressed),
        }

    def files(self) -> dict[str, bytes]:
        special = json.dumps(self.special, ensure_ascii=False, sort_keys=True)
        files = {**super().files(), ADDED: special.encode()}
        return files | ({SETTINGS: json.dumps(self._settings).encode()} if self._settings else {})


def build(options: Config, training: Training) -> Whisper:
    """The tokenizer of options.path; it cannot be trained."""
    del training
    return load(options.path)


def load(folder: Any) -> Whisper:
    """The tokenizer of a Hugging Face folder, or of one that Tokenizer.save wrote.

    Raises UserError if a file is missing or malformed, or the special tokens are not Whisper's.
    """
    from etils import epath

    vocab, merges = read_bpe_files(folder)
    root = epath.Path(folder)
    if (root / ADDED).exists():
        added = check_pieces(_json(root / ADDED), root / ADDED)
    elif (root / "tokenizer.json").exists():
        added = added_tokens(_json(root / "tokenizer.json"), root / "tokenizer.json")
    else:
        added = {}
    settings = _json(root / SETTINGS) if (root / SETTINGS).exists() else {}
    return Whisper(vocab, merges, added, settings, str(folder))


def _json(path: Any) -> dict:
    text = read_text(path, "a JSON object")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not JSON ({e}). Copy it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {shown(content)}; it must be a JSON object. Copy it again.")
    return content
