"""Progress bars with time left, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]


def bars() -> Progress:
    """Return an empty display; every task has a field `note`."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


@contextmanager
def stage(title: str, total: int) -> Iterator[Advance]:
    """Show one bar while the context is open; the yielded function moves it on: `advance(n=1, note="")`."""
    with bars() as display:
        task = display.add_task(title, total=total, note="")

        def advance(n: int = 1, note: str | None = None) -> None:
            display.advance(task, n)
            if note is not None:
                display.update(task, note=note)

        yield advance
