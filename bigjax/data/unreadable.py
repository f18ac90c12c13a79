"""Files of a split that cannot be read: each is named and counted, and too many end the run."""

from collections.abc import Callable, Mapping
import threading

from bigjax.errors import UserError
from bigjax.plural import plural

_NAMED, _REPORTED = 3, 5  # files in an error, and in the log
NO_WEIGHT = "It has no weight (data.max_bad)."


class Unreadable:
    """The examples of a split that cannot be read, each counted once; too many raise UserError. May
    be used from several threads."""

    def __init__(
        self,
        n: int,
        file_of: Callable[[int], str],
        most: float,
        name: str,
        report: "Report | None" = None,
        unit: str = "images",
        done: str = "read",
    ) -> None:
        """n: examples of the split. file_of(i): the file of example i, for messages. most: the
        share that may be unreadable, data.max_bad. name: of the split. unit: what examples are.
        done: what could not be done with them, for messages."""
        self._n, self._file_of, self._most, self._name = n, file_of, most, name
        self._report, self._unit, self._done = report, unit, done
        self._messages: dict[int, str] = {}
        self._lock = threading.Lock()

    def why(self, i: int) -> str:
        """What is wrong with example i, which has no weight."""
        return self._messages.get(i, "another host could not read it")

    def add(self, i: int, message: str) -> None:
        """message: what is wrong with example i. Raises UserError if too many are unreadable."""
        self.add_all({i: message})

    def add_all(self, messages: Mapping[int, str]) -> None:
        """As `add`, of several examples."""
        if not messages:
            return
        with self._lock:
            self._messages |= messages
            bad = [*self._messages]
        if len(bad) > self._most * self._n:
            named = ", ".join(map(self._file_of, bad[:_NAMED])) + ", ..." * (len(bad) > _NAMED)
            these = f" ({named})" * (len(bad) > 1)
            unit = plural(self._n, self._unit.removesuffix("s"))
            raise UserError(
                f"{next(iter(messages.values()))} {len(bad):,} of {self._n:,} {unit} of the "
                f"{self._name} data cannot be {self._done}{these}; data.max_bad={self._most:g} "
                f"allows {int(self._most * self._n):,}. Remove them, or raise data.max_bad: such "
                f"{self._unit} then have no weight."
            )
        for i, message in messages.items() if self._report else ():
            self._report(self._file_of(i), message)


class Report:
    """Logs a message about a file once, in all epochs and evaluations, and only those of the first
    few files. May be called from several threads."""

    def __init__(
        self,
        log: Callable[[str], None],
        more: str = "more images cannot be read",
        remark: str = NO_WEIGHT,
    ) -> None:
        """more: the words for further files. remark: ends each line."""
        self._log, self._more, self._remark = log, more, remark
        self._files: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, file: str, message: str) -> None:
        with self._lock:
            if file in self._files or len(self._files) > _REPORTED:
                return
            self._files.add(file)
            if len(self._files) <= _REPORTED:
                self._log(f"data: {message} {self._remark}".rstrip())
            else:
                self._log(f"data: {self._more} than these {_REPORTED}: not logged")
