"""One bar for a whole calibration; without a terminal, a line every half minute."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from cachesmith.progress import stage

_EVERY = 30.0
"""Seconds between two lines."""


@contextmanager
def overall(runs: float) -> Iterator[Callable[[float], None]]:
    """Yield `advance(run_equivalents)`."""
    if sys.stderr.isatty():
        with stage("run equivalents", max(1, round(runs))) as advance:
            yield advance
        return
    began = said = monotonic()
    done = 0.0

    def note(n: float) -> None:
        nonlocal said, done
        done += n
        if monotonic() - said > _EVERY:
            said = monotonic()
            left = (said - began) / done * max(0.0, runs - done)
            print(
                f"{done:.0f} of {runs:.0f} run equivalents, {left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    yield note
