"""Who has the samples of a calibration: this process, or processes beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from cachesmith.calibrate.fleet.groups import Group, shared_out
from cachesmith.calibrate.fleet.processes import Process
from cachesmith.calibrate.fleet.recipe import Loader, Recipe, print_of
from cachesmith.calibrate.fleet.remote import Remote
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards, Worker
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.policies import PolicyError
from cachesmith.sampling.render import Renderer, device_of


@contextmanager
def hired(
    renderer: Renderer,
    groups: Sequence[Group],
    folder: Path,
    workers: int,
    load: Loader | None,
    where: Placement,
) -> Iterator[Shards]:
    """The samples, shared out; workers that are processes of their own end with the block.

    workers: processes, this one among them. Raises `PolicyError` where the machine has fewer GPUs,
    or where there is no `load`.
    """
    device, count = device_of(renderer.pipe), sum(len(group.numbers) for group in groups)
    if workers == 1:
        yield Shards(groups, [InProcess(Shard(renderer, dict(enumerate(groups)), folder, where))], device)
        return
    if load is None:
        raise PolicyError(
            "workers load the pipeline themselves: give `calibrate` a function that loads it onto a device, load=..."
        )
    wanted = min(count, workers)
    threads = max(1, torch.get_num_threads() // wanted) if device.type == "cpu" else None
    recipes = _recipes(renderer, groups, folder, load, where, worker_devices(device, wanted), threads)
    own: list[Worker] = [InProcess(Shard(renderer, recipes[0].groups, folder, where))]
    shards = Shards(groups, own, device, wanted)
    try:
        for number, recipe in enumerate(recipes[1:], 1):
            own.append(Remote(f"worker {number}", partial(Process, recipe)))
        yield shards
    finally:
        shards.close()


def worker_devices(own: torch.device, workers: int) -> list[str]:
    """A device for each worker, the first of them `own`. Raises `PolicyError` where there are too few GPUs."""
    if own.type != "cuda":
        return [str(own)] * workers
    first, present = own.index or 0, torch.cuda.device_count()
    if workers > present:
        raise PolicyError(f"this machine has {present} GPUs for {workers} workers; write --workers {present}")
    return [f"cuda:{(first + i) % present}" for i in range(workers)]


def _recipes(
    renderer: Renderer,
    groups: Sequence[Group],
    folder: Path,
    load: Loader,
    where: Placement,
    places: Sequence[str],
    threads: int | None,
) -> list[Recipe]:
    print, whole = print_of(renderer.pipe), folder.resolve()
    return [
        Recipe(load, place, renderer.steps, where, renderer.common, held, whole, print, threads)
        for place, held in zip(places, shared_out(groups, len(places)), strict=True)
    ]
