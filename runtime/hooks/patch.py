"""Replace an attribute of one object for the length of a context, and put it back whatever happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
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


@contextmanager
def heard(owner: Any, name: str, then: Callable[..., None]) -> Iterator[None]:
    """Call `then`, with the same arguments, after every call of `owner`'s method `name`.

    It stays a bound method, and as such follows its owner: pipelines that deep-copy the scheduler get a copy that calls
    its own method and is not heard. Pipelines also ask for its signature.
    """
    original = getattr(owner, name)
    function = getattr(original, "__func__", None)

    @wraps(function or original)
    def method(this: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(this, *args, **kwargs) if function else original(*args, **kwargs)
        if this is owner:
            then(*args, **kwargs)
        return result

    with patched(owner, name, MethodType(method, owner)):
        yield
