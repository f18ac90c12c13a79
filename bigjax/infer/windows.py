"""What a model of models.whisper writes for windows of audio: the WindowDecoder of
infer.transcribe."""

from collections.abc import Sequence
import functools
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.data.tokenizers.whisper import STEP
from bigjax.errors import UserError
from bigjax.infer import speech
from bigjax.infer.beam_search import beam_search, per_beam, repeated
from bigjax.infer.generate import CHUNK, Generator, Rows, padded_rows
from bigjax.infer.generate import Options as Sampling
from bigjax.infer.transcribe import Decoded, Job, Options, Vocabulary
from bigjax.models import Decoder, rung


class ModelWindows:
    """A model with its tokenizer; see infer.transcribe.WindowDecoder.

    Without Whisper's tokenizer there are no times, languages and prompts.
    """

    def __init__(
        self, decoder: Decoder, variables: Any, c: Any, tokenizer: Any, options: Options, most: int
    ) -> None:
        """decoder: of models.whisper. c: the model's Config. most: tokens of a window's text, for
        a tokenizer that is not Whisper's. Raises UserError for options that the model does not
        have."""
        self.sample_rate, self.n_samples, self.hop = c.sample_rate, c.n_samples, c.hop
        self._plain, self._tokenizer, self._options = decoder, tokenizer, options
        self._end = tokenizer.eos_id
        if is_whisper(tokenizer):
            rules = speech.rules_of(tokenizer, timestamps=options.timestamps)
            if rules.start_id != c.start_id:
                raise UserError(
                    f"model.start_id={c.start_id} is not the tokenizer's token before a text, "
                    f"{rules.start_id}. Use the tokenizer that the model was trained with."
                )
            rules = rules._replace(max_first=round(options.max_initial_timestamp / STEP))
            self.detects = tokenizer.multilingual and not options.language
            self.max_prompt = c.max_len // 2 - 1 if options.condition_on_previous_text else 0
            # After a long prompt a text ends earlier, where the model has no more positions.
            self._most = c.max_len // 2
            self._decoder = speech.ruled(decoder, rules)
            first, step = rules.first_timestamp, round(STEP * c.sample_rate)
            times = (first, step) if options.timestamps else (None, 0)
            self.vocabulary = Vocabulary(tokenizer.decode, rules.end_id, *times)
        else:
            check_plain(options, tokenizer)
            self.detects, self.max_prompt, self._decoder = False, 0, decoder
            self._most = min(most, c.max_len)
            self.vocabulary = Vocabulary(tokenizer.decode, tokenizer.vocab_size)
        if self._most < 1:
            raise UserError(f"model.max_len={c.max_len} leaves no room for a text.")
        # One program for windows with a prompt of any length, and one for those without.
        self._width = min(rung(self.max_prompt + 1), c.max_len - 1)
        self._slots = min(rung(self._most), c.max_len)
        self._generator = Generator(decoder=self._decoder, variables=variables)

    def decode(self, jobs: Sequence[Job], temperature: float) -> list[Decoded]:
        context, first = self._decoder.context(padded_rows([*map(self._input, jobs)]))
        if 0 < (n := context["tokens"].shape[1]) < self._width:
            context["tokens"] = np.pad(context["tokens"], ((0, 0), (0, self._width - n)))
        if temperature == 0:
            return self._search(context, first)[: len(jobs)]
        return self._sample(jobs, context, first, temperature)

    def detect(self, audio: Sequence[np.ndarray]) -> list[str]:
        context, first = self._plain.context(padded_rows(audio))
        variables = self._generator.variables
        p_BV = np.asarray(speech.start_probabilities(self._plain, variables, context, first))
        codes, ids = zip(*self._tokenizer.languages.items())
        return [codes[i] for i in p_BV[: len(audio), list(ids)].argmax(1)]

    def _start(self, language: str) -> list[int]:
        task, timestamps = self._options.task, self._options.timestamps
        return self._tokenizer.start(language, task, timestamps=timestamps)

    def _input(self, job: Job) -> Any:
        if not is_whisper(self._tokenizer):
            return job.audio
        prompt = [self._tokenizer.special["<|startofprev|>"], *job.prompt] if job.prompt else []
        return job.audio, [*prompt, *self._start(job.language)]

    def _search(self, context: Any, first: np.ndarray) -> list[Decoded]:
        """At temperature 0: the best text of a beam search."""
        sizes = dict(width=self._options.beam, size=rung(self._most), slots=self._slots)
        tokens, scores, no_speech = jax.device_get(
            _search(
                self._decoder,
                self._generator.variables,
                context,
                first,
                self._most,
                self._end,
                **sizes,
            )
        )
        no_speech = _listed(no_speech, len(tokens))
        texts = [row[: self._most].tolist() for row in tokens]
        texts = [ids[: ids.index(self._end)] if self._end in ids else ids for ids in texts]
        return [Decoded(*row) for row in zip(texts, scores.tolist(), no_speech)]

    def _sample(
        self, jobs: Sequence[Job], context: Any, first: np.ndarray, temperature: float
    ) -> list[Decoded]:
        """The most likely of best_of samples for each job, by its log-probability per token."""
        W, B = self._options.best_of, len(first)
        variables = self._generator.variables
        names = [repr((*job.key, temperature, k)).encode() for job in jobs for k in range(W)]
        numbers = np.zeros(B * W, np.uint32)
        numbers[: len(names)] = [*map(zlib.crc32, names)]
        running = np.arange(B * W) < len(names)
        rows, no_speech = _begin(
            self._decoder,
            variables,
            context,
            first,
            jax.random.key(self._options.seed),
            numbers,
            running,
            width=W,
            slots=self._slots,
        )
        sampling = Sampling(self._most, temperature, eos_id=self._end)
        texts: list[list[int]] = [[] for _ in names]
        totals = np.zeros(len(names))
        for start in range(0, self._most, CHUNK):
            if not running.any():
                break
            rows, chunk = self._generator.advance(rows, sampling, min(CHUNK, self._most - start))
            for i in np.flatnonzero(running):
                n = int(chunk.real[i].sum())
                texts[i] += chunk.tokens[i, :n].tolist()
                totals[i] += float(chunk.log_p[i, : n + 1].sum())  # with that of the end
                running[i] = n == chunk.tokens.shape[1]
        lengths = np.array([len(ids) for ids in texts])
        best = (totals / np.maximum(lengths, 1)).reshape(-1, W).argmax(1)
        best += W * np.arange(len(jobs))
        no_speech = _listed(no_speech, len(jobs))
        return [
            Decoded(texts[i], float(totals[i] / (lengths[i] + 1)), p)
            for i, p in zip(best, no_speech)
        ]


def is_whisper(tokenizer: Any) -> bool:
    """Whether a tokenizer has the tokens of languages, tasks and times."""
    return hasattr(tokenizer, "start")


def check_plain(options: Options, tokenizer: Any) -> None:
    """Raises UserError for options that need Whisper's tokenizer."""
    if options.language or options.task != "transcribe":
        raise UserError(
            f"--language={options.language} and --task={options.task} need a tokenizer with tokens "
            f"for them, such as Whisper's; that of this model ({tokenizer.name}) has none. Remove "
            "both."
        )


def _listed(no_speech: Any, n: int) -> list:
    """A number or None for each of n rows."""
    return [None] * n if no_speech is None else np.asarray(no_speech)[:n].tolist()


@functools.partial(jax.jit, static_argnames=("decoder", "width", "size", "slots"))
def _search(decoder, variables, context, first_B, n, end_id, *, width, size, slots):
    """(the best text [B, size], its score [B], the probability of no speech [B] or None)."""
    state = decoder.begin(variables, context, slots)
    begun = decoder._replace(begin=lambda *_: state)
    sizes = dict(width=width, size=size, n=n, slots=slots)
    ends = dict(end_id=end_id, pad_id=end_id)
    tokens, scores = beam_search(begun, variables, context, first_B, **sizes, **ends)
    return tokens[:, 0], scores[:, 0], getattr(state, "no_speech", None)


@functools.partial(jax.jit, static_argnames=("decoder", "width", "slots"))
def _begin(decoder, variables, context, first_B, key, numbers, running, *, width, slots):
    """(Rows, `width` for each of B windows, the probability of no speech [B] or None)."""
    state = decoder.begin(variables, context, slots)
    no_speech = getattr(state, "no_speech", None)
    state = per_beam(repeated(width), state)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    drawn = jnp.zeros(len(numbers), jnp.int32)
    return Rows(state, jnp.repeat(first_B, width), keys, drawn, running), no_speech
