"""Requests that end anywhere: inside a block, between two calls, in the scheduler, after the last step."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from tests.tiny import Pipeline


class StoppedError(BaseException):
    """A request ends here, as by the keyboard."""


ERRORS: tuple[type[BaseException], ...] = (StoppedError, RuntimeError, KeyboardInterrupt)
METHODS = {
    "before step": "step",
    "after step": "step",
    "after the timesteps": "set_timesteps",
    "decode": "decode",
}
PLACES = ("block", "after the call", *METHODS)
ONCE = ("after the timesteps", "decode")
"""Places that a request passes once."""


@contextmanager
def stopping(pipe: Pipeline, place: str, at: int, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` when the request comes to `place` for the `at`-th time."""
    count = 0

    def trip(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise error

    def around(owner: Any, name: str) -> Any:
        wrapped = _then(trip, getattr(owner, name), first=not place.startswith("after"))
        return patch.object(owner, name, wrapped)

    with ExitStack() as stack:
        if place == "block":
            stack.callback(pipe.transformer.transformer_blocks[0].register_forward_pre_hook(trip).remove)
        elif place == "after the call":
            stack.callback(pipe.transformer.register_forward_hook(trip).remove)
        else:
            stack.enter_context(around(pipe.vae if place == "decode" else pipe.scheduler, METHODS[place]))
        yield


def _then(trip: Callable[[], None], original: Callable[..., Any], first: bool) -> Callable[..., Any]:
    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if first:
            trip()
        result = original(*args, **kwargs)
        if not first:
            trip()
        return result

    return call
