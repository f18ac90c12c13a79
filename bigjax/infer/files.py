"""Texts or numbers for a whole file: in batches of similar lengths, whose results are kept on disk
until all are there, so that a command that was interrupted resumes with the rest."""

from collections.abc import Callable, Sequence
import hashlib
import json
import time
from typing import Any

from etils import epath

from bigjax import json_text, paths
from bigjax.errors import UserError
from bigjax.infer.batch import by_length
from bigjax.infer.progress import Bar

KEPT = ".partial"  # the ending of the folder with the results so far
_SAVE_SECONDS = 10.0

Texts = list[tuple[str, float]]  # of one input: the best ones with their scores


def generate_all(
    inputs: Sequence[Sequence],
    generate: Callable[[list[int]], list[Texts]],
    batch_size: int,
    output: str = "",
    settings: Any = None,
    log: Callable[[str], None] = print,
    verb: str = "generat",
    unit: str = "text",
) -> list[Texts]:
    """generate(indices of inputs) of all inputs, in batches.

    verb, unit: what is done with what, for the progress, see Bar.

    output: the file that they are for; beside it is a folder with the results so far, from which a
    later call with the same inputs and settings resumes. '' keeps nothing. settings: what the
    results depend on besides the inputs, as JSON. Call `forget(output)` when they are written.
    """
    batches = by_length([*map(len, inputs)], batch_size)
    kept = _Kept(output, _fingerprint(inputs, batch_size, settings), log) if output else None
    results: list[Texts] = [[] for _ in inputs]
    done = kept.results if kept else {}
    for number, texts in done.items():
        for i, row in zip(batches[number], texts):
            results[i] = [tuple(text) for text in row]
    n_done = sum(len(batches[number]) for number in done)
    if n_done:
        log(f"{n_done:,} of {len(inputs):,} are in {kept.folder}: resuming with the others.")
    try:
        with Bar(len(inputs), n_done, verb, unit, log) as bar:
            for number, indices in enumerate(batches):
                if number in done:
                    continue
                texts = generate(indices)
                for i, row in zip(indices, texts):
                    results[i] = row
                if kept:
                    kept.add(number, texts)
                bar.add(len(indices))
    except KeyboardInterrupt:
        if kept and bar.done:
            log(f"{bar.done:,} of {len(inputs):,} are in {kept.folder}: the same command resumes.")
        raise
    finally:  # after an error too
        if kept:
            kept.save()
    return results


def forget(output: str) -> None:
    """Removes the results that generate_all kept for a file."""
    folder = _folder(output)
    if paths.exists(folder):
        folder.rmtree()


def _folder(output: str) -> epath.Path:
    return epath.Path(f"{output}{KEPT}").expanduser()


def _fingerprint(inputs, batch_size: int, settings) -> str:
    digest = hashlib.sha256(json.dumps([batch_size, settings]).encode())
    for row in inputs:
        digest.update(json.dumps([*map(float, row)]).encode())
    return digest.hexdigest()[:16]


class _Kept:
    """Results of batches by number, in files of a folder, each written at once. Those of other
    settings or inputs stay beside them until the output is written."""

    def __init__(self, output: str, fingerprint: str, log) -> None:
        self.folder = _folder(output)
        self.results: dict[int, list[Texts]] = {}
        self._new: dict[int, list[Texts]] = {}
        self._fingerprint, self._saved = fingerprint, time.monotonic()
        files = [*self.folder.glob("*.json")] if paths.exists(self.folder) else []
        own = sorted(file for file in files if file.name.startswith(f"{fingerprint}-"))
        for file in own:
            try:
                content = json.loads(file.read_bytes())
                self.results |= {int(n): texts for n, texts in content.items()}
            except (OSError, ValueError, AttributeError) as e:
                raise UserError(
                    f"{file} holds results of an earlier call, and cannot be read ({e}). Remove "
                    f"{self.folder} to start again."
                ) from None
        if len(own) < len(files):
            log(
                f"note: {self.folder} also has results of another model, or for other inputs or "
                "settings; they are not used, and removed once the file is complete."
            )

    def add(self, number: int, texts: list[Texts]) -> None:
        self._new[number] = texts
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if not self._new:
            return
        file = self.folder / f"{self._fingerprint}-{min(self._new):06d}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths.write_atomically(file, json_text.dumps(self._new).encode())
        except OSError as e:
            raise UserError(
                f"{file} cannot be written: {e.strerror or e}. Name an --output in a folder with "
                "space and with write permission."
            ) from None
        self._new, self._saved = {}, time.monotonic()
