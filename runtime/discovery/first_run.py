"""The blocks of classes without a row, found before anything else is done with a pipeline."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from cachesmith.runtime.discovery.first_call import learned_at_first_call
from cachesmith.runtime.models.adapters import known_adapter
from cachesmith.runtime.models.denoisers import denoisers


class _AllFound(BaseException):
    """Leaves a pipeline's call; no `except Exception` of the pipeline's catches it."""


def find_blocks(pipe: Any, run: Callable[[], object]) -> None:
    """Have the blocks of all denoisers of `pipe` that no adapter is known of found by their first calls in `run`.

    `run` samples with `pipe`, and is left as soon as all are found; it is not begun where all are known. Raises what
    `discover` raises.
    """
    unknown = {*(each for each in denoisers(pipe).values() if known_adapter(each) is None)}
    if not unknown:
        return
    try:
        with ExitStack() as stack:
            for each in unknown:
                stack.enter_context(learned_at_first_call(each, partial(_found, each, unknown), False))
            run()
    except _AllFound:
        pass


@contextmanager
def _found(transformer: nn.Module, unknown: set[nn.Module]) -> Iterator[None]:
    unknown.discard(transformer)
    if not unknown:
        raise _AllFound
    yield
