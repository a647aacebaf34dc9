"""A policy for the life of a server: `enable(pipe, policy)` beside the context manager `apply`."""

import os
from contextlib import AbstractContextManager
from typing import Any

from cachesmith.policies import Policy, PolicyError
from cachesmith.runtime.apply import apply
from cachesmith.runtime.runs.session import Session

_ENABLED = "_cachesmith_enabled"


class _Enabled:
    """The context that a pipeline is in, kept on the pipeline: both go together, and copies of it are in none."""

    def __init__(self, pipe: Any = None, context: AbstractContextManager[Session] | None = None):
        self._pipe, self._context = pipe, context

    def of(self, pipe: Any) -> AbstractContextManager[Session] | None:
        """The context of `pipe`, which may be a shallow copy of the pipeline that is in it."""
        return self._context if pipe is self._pipe else None

    def __reduce__(self) -> tuple[type["_Enabled"], tuple[()]]:
        return _Enabled, ()


def enable(
    pipe: Any, policy: Policy | str | os.PathLike[str], profile: str | None = None, **options: Any
) -> Session:
    """Sample under `policy` from now on, until `disable(pipe)`. Takes what `apply` takes, and is as exact.

    The returned session's `use("fast")` changes the profile between requests; `stats.runs` tells of each request.
    Raises `PolicyError` where the pipeline is enabled already, and whatever `apply` raises.
    """
    if _context(pipe) is not None:
        raise PolicyError("this pipeline runs under a policy already; call cachesmith.disable(pipe) first")
    context = apply(pipe, policy, profile, **options)
    session = context.__enter__()
    vars(pipe)[_ENABLED] = _Enabled(pipe, context)
    return session


def disable(pipe: Any) -> None:
    """Put the pipeline back as it was. Does nothing where it is not enabled."""
    context = _context(pipe)
    vars(pipe).pop(_ENABLED, None)
    if context is not None:
        context.__exit__(None, None, None)


def _context(pipe: Any) -> AbstractContextManager[Session] | None:
    enabled = vars(pipe).get(_ENABLED)
    return enabled.of(pipe) if isinstance(enabled, _Enabled) else None
