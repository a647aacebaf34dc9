"""A policy for the life of a server: `enable(pipe, policy)` beside the context manager `apply`."""

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from cachesmith.policies import Policy, PolicyError
from cachesmith.runtime.apply import apply
from cachesmith.runtime.session import Session

_ENABLED: WeakKeyDictionary[Any, AbstractContextManager[Session]] = WeakKeyDictionary()


def enable(pipe: Any, policy: Policy, profile: str | None = None, **options: Any) -> Session:
    """Sample under `policy` from now on, until `disable(pipe)`. Takes what `apply` takes, and is as exact.

    The returned session's `use("fast")` changes the profile between requests; `stats.runs` tells of each request.
    Raises `PolicyError` where the pipeline is enabled already, and whatever `apply` raises.
    """
    if pipe in _ENABLED:
        raise PolicyError("this pipeline runs under a policy already; call cachesmith.disable(pipe) first")
    context = apply(pipe, policy, profile, **options)
    session = context.__enter__()
    _ENABLED[pipe] = context
    return session


def disable(pipe: Any) -> None:
    """Put the pipeline back as it was. Does nothing where it is not enabled."""
    context = _ENABLED.pop(pipe, None)
    if context is not None:
        context.__exit__(None, None, None)
