"""A worker elsewhere: where it dies, another takes its place and is led to where it was."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

from cachesmith.calibrate.fleet.journal import Journal
from cachesmith.calibrate.fleet.wire import Call, from_bytes, to_bytes
from cachesmith.policies import CachesmithError

TRIES = 3
"""Workers that may die of one call."""


class GoneError(Exception):
    """The worker at the other end is dead."""


class Line(Protocol):
    """A worker's process, and the way to it."""

    def ask(self, message: bytes) -> bytes:
        """Send a message and wait for its answer. Raises `GoneError`."""

    def close(self) -> None:
        """End the process."""


class Remote:
    """A shard at the other end of a line.

    repeated: forwards of one sample and step that were lost with a worker and computed again.
    """

    def __init__(self, name: str, connect: Callable[[], Line]):
        self._name, self._connect = name, connect
        self._line: Line | None = connect()
        self._journal = Journal()
        self._closed = False
        self.repeated = 0.0

    def __call__(self, call: Call) -> Any:
        """Have it done; raise what it raises. `CachesmithError` where workers die of it again and again."""
        for _ in range(TRIES):
            try:
                answer = self._ask(call)
            except GoneError as error:
                if self._closed:
                    raise
                self._replace(error)
                reason = error
                continue
            self._journal.add(call)
            return answer
        raise CachesmithError(
            f"{TRIES} workers died one after another while they were asked for `{call.name}` ({reason}); give "
            "them more memory, fewer --workers, or a smaller --batch; the same command goes on where it stopped"
        )

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._line is not None:
            self._line.close()

    def _replace(self, error: GoneError) -> None:
        warnings.warn(
            f"{self._name} died ({error}) and is replaced; what it was computing is computed again",
            RuntimeWarning,
            stacklevel=4,
        )
        if self._line is not None:
            self._line.close()
        self._line = None

    def _ask(self, call: Call) -> Any:
        if self._line is None:
            self._line = self._connect()
            for past in self._journal.calls:
                self._count_again(past, self._exchange(past))
        return self._exchange(call)

    def _count_again(self, call: Call, answer: Any) -> None:
        if call.name == "reference":
            self.repeated += answer.sampled * answer.steps
        elif call.name == "compute":
            self.repeated += answer

    def _exchange(self, call: Call) -> Any:
        assert self._line is not None
        answer, error = from_bytes(self._line.ask(to_bytes(call)))
        if error is not None:
            raise error
        return answer
