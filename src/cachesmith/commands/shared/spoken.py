"""Warnings as sentences on stderr, each once: our own, and what diffusers' pipelines log about a call."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten

from cachesmith.commands.output import errors

_PIPELINES = "diffusers.pipelines"
_LOADING = ("pipeline_utils", "pipeline_loading_utils")
"""Modules that talk about files."""

_TOLD_BY_US = ("`num_frames - 1` has to be", " is passed ")
"""What is in pipelines' warnings that `check_requests` gives with remedies."""

_LONGEST = 300
"""Characters of a pipeline's warning."""


@contextmanager
def spoken_warnings(verbose: bool = False) -> Iterator[None]:
    """Print warnings of cachesmith and of diffusers' pipelines; those of other libraries only with `verbose`."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            errors().print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings(), _heard(_PipelineHandler(say)):
        warnings.simplefilter("default" if verbose else "ignore")
        warnings.filterwarnings("always", category=RuntimeWarning, module=r"cachesmith\.")
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        yield


class _PipelineHandler(logging.Handler):
    """Says what a place in a pipeline's code logs, the first time: it may do so for every prompt."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._say, self._places = say, set[tuple[str, int]]()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record."""
        place, text = (record.pathname, record.lineno), " ".join(record.getMessage().split())
        if record.module in _LOADING or any(part in text for part in _TOLD_BY_US) or place in self._places:
            return
        self._places.add(place)
        self._say(shorten(text, _LONGEST, placeholder=" ..."))


@contextmanager
def _heard(handler: logging.Handler) -> Iterator[None]:
    """Give the pipelines' log to `handler` alone, however quiet diffusers is told to be otherwise."""
    logger = logging.getLogger(_PIPELINES)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
