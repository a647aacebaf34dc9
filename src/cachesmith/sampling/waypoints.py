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
    return tuple(dict.fromkeys(step for step in even if 0 < step < steps - 1))


@contextmanager
def follow(scheduler: Any, steps: Collection[int] | None = None) -> Iterator[list[Tensor]]:
    """Collect the latents that `scheduler.step` is given at `steps` of one run; gradients flow through them.

    steps: by default the waypoints of the run, which may begin in the middle of the scheduler's timesteps. Cosmos has
    the scheduler step more than once with the same timestep, which is one step.
    """
    seen: list[Tensor] = []
    wanted: Collection[int] = () if steps is None else steps
    calls, latest = count(), None

    def note(output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> None:
        nonlocal wanted, latest
        if timestep is latest and isinstance(timestep, Tensor):
            return
        call, latest = next(calls), timestep
        if steps is None and call == 0:
            wanted = waypoints(len(scheduler.timesteps) - begun_at(scheduler, timestep))
        if call in wanted:
            seen.append(sample)

    with heard(scheduler, "step", note):
        yield seen


@contextmanager
def visited_steps(scheduler: Any) -> Iterator[list[int]]:
    """Collect how many steps every run visits: fewer than its scheduler lists, where it begins in their middle.

    Second-order samplers visit more than they are asked for. Pipelines that step a copy of their scheduler tell none.
    """
    runs: list[int] = []
    begins = True

    def announced(*_: Any, **__: Any) -> None:
        nonlocal begins
        begins = True

    def stepped(*args: Any, **kwargs: Any) -> None:
        nonlocal begins
        if begins:
            timestep = args[1] if len(args) > 1 else kwargs["timestep"]
            runs.append(len(scheduler.timesteps) - begun_at(scheduler, timestep))
        begins = False

    with heard(scheduler, "set_timesteps", announced), heard(scheduler, "step", stepped):
        yield runs


def begun_at(scheduler: Any, timestep: Any) -> int:
    """The place of a run's first timestep on its scheduler's list: runs may begin in the middle of it."""
    timesteps = torch.as_tensor(scheduler.timesteps).flatten().cpu()
    now = torch.as_tensor(timestep).flatten()[:1].cpu()
    places = (timesteps == now).nonzero().flatten().tolist()
    return int(places[0]) if places else 0


def joined_path(seen: list[Tensor], samples: int) -> Tensor:
    """One batch's path, [samples, waypoints, ...], float32, on the host.

    Pipelines that step both halves of guidance keep the samples in the first. Those that step a copy of their scheduler
    show no path: a zero stands for it.
    """
    if not seen:
        return torch.zeros(samples, 1, 1)
    return torch.stack([latents[:samples] for latents in seen], 1).float().cpu()
