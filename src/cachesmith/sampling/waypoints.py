"""The path from noise to picture: latents at a few steps of a run.

Weights that are judged by pictures alone may let the latents stray, as long as the last steps bring them back. Most
samples forgive that; a sample at a fork takes the other branch, and the error grows tenfold. So tuned runs are held to
the uncached path, too, which tells gradients of early steps more than the picture at the end does.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from cachesmith.runtime.hooks.patch import heard

WAYPOINTS = 8
"""Steps of a run whose latents are remembered; fewer of a short one."""


def waypoints(steps: int) -> tuple[int, ...]:
    """Steps that part a run evenly; neither its first nor its last."""
    even = (round((steps - 1) * (i + 1) / (WAYPOINTS + 1)) for i in range(WAYPOINTS))
    return tuple(dict.fromkeys(even))


@contextmanager
def follow(scheduler: Any, steps: Collection[int]) -> Iterator[list[Tensor]]:
    """Collect the latents that `scheduler.step` is given at `steps` of one run; gradients flow through them."""
    seen: list[Tensor] = []
    calls = count()

    def note(output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> None:
        if next(calls) in steps:
            seen.append(sample)

    with heard(scheduler, "step", note):
        yield seen


def joined(seen: list[Tensor], samples: int) -> Tensor:
    """One batch's path, [samples, waypoints, ...], float32, on the host.

    Pipelines that step both halves of guidance keep the samples in the first. Those that step a copy of their scheduler
    show no path: a zero stands for it.
    """
    if not seen:
        return torch.zeros(samples, 1, 1)
    return torch.stack([latents[:samples] for latents in seen], 1).float().cpu()
