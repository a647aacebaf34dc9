"""How far a call of the pipeline is, by its sampler's steps: one call may take minutes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cachesmith.progress import Advance
from cachesmith.runtime.hooks.patch import heard
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, batches


@contextmanager
def steps_told(renderer: Renderer, requests: Sequence[Request], advance: Advance) -> Iterator[None]:
    """Call `advance` with parts of samples, all of `requests` in all, while the renderer samples them in the block.

    Pipelines that step a copy of their scheduler are not heard before the block ends.
    """
    left = float(len(requests))
    part = left / (len(batches(requests, renderer.batch)) * renderer.steps)

    def told(*_: Any, **__: Any) -> None:
        nonlocal left
        now = min(part, left)  # some samplers step more often than they are asked to
        left -= now
        advance(now)

    with heard(renderer.pipe.scheduler, "step", told):
        yield
    advance(left)
