"""Replace an attribute of one object for the length of a context, and put it back whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set `target.name` on the instance only; on exit the instance's `__dict__` is as it was before."""
    before = vars(target).get(name, _ABSENT)
    vars(target)[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            vars(target).pop(name, None)
        else:
            vars(target)[name] = before
