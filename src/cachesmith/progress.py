"""Progress on stderr: bars with the time left on a terminal, elsewhere a plain line every 30 seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]

_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

_ROUNDING = 1e-6
"""Of many parts that make up a whole."""

_quiet: ContextVar[bool] = ContextVar("_quiet", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Show no progress while the context is open."""
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Say whether the user wants nothing but results, warnings and errors."""
    return _quiet.get()


def shows_bars() -> bool:
    """Say whether there is a terminal for bars, and the user wants them."""
    return Console(stderr=True).is_terminal and not is_quiet()


def bars() -> Progress:
    """Return an empty display; every task has a field `note`."""
    if not shows_bars():
        return Lines(is_quiet())
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def tell(text: str) -> None:
    """Write a line about what is about to happen, unless the user wants none."""
    if not is_quiet():
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stage(title: str, total: float | None) -> Iterator[Advance]:
    """Show one bar while the context is open; the yielded function moves it on: `advance(n=1, note="")`.

    total: None where nobody knows it.
    """
    with bars() as display:
        task = display.add_task(title, total=total, note="")

        def advance(n: float = 1, note: str | None = None) -> None:
            display.advance(task, n)
            if note is not None:
                display.update(task, note=note)

        yield advance


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Write lines about work that shows bars of its own on a terminal, such as loading a model."""
    with Lines(is_quiet() or shows_bars()) as display:
        display.add_task(title, total=None, note="")
        yield


class Lines(Progress):
    """Writes how far the newest task is, every 30 seconds and at the end, for logs."""

    def __init__(self, silent: bool = False):
        super().__init__(disable=True)
        self._silent, self._over = silent, Event()
        self._writer = Thread(target=self._write, daemon=True)

    def start(self) -> None:
        """Begin to write."""
        if not self._silent:
            self._writer.start()

    def stop(self) -> None:
        """Write the last line."""
        if self._writer.is_alive():
            self._over.set()
            self._writer.join()

    def _write(self) -> None:
        console = Console(stderr=True)
        going = True
        while going:
            going = not self._over.wait(_EVERY)
            if self.tasks:
                console.print(line(self.tasks[-1]), markup=False, highlight=False, soft_wrap=True)


def line(task: Task) -> str:
    """Say how far a task is, and the time it has taken: `sampling: 12 of 64, 0:01:30, 0:06:30 left`."""
    of = "" if task.total is None else f" of {task.total:.0f}"
    done = f" {int(task.completed + _ROUNDING)}{of}," if task.completed or of else ""
    left = None if task.finished else task.time_remaining
    rest = "" if left is None else f", {_clock(left)} left"
    note = f", {task.fields['note']}" if task.fields.get("note") else ""
    return f"{task.description}:{done} {_clock(task.elapsed or 0)}{rest}{note}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
