"""Who has the samples of a calibration: this process, and processes beside it or actors of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from cachesmith.calibrate.fleet.groups import Group, shared_out
from cachesmith.calibrate.fleet.processes import Process
from cachesmith.calibrate.fleet.recipe import Loader, Recipe, print_of
from cachesmith.calibrate.fleet.remote import Line, Remote
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards, Worker
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.policies import CachesmithError, PolicyError
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer, device_of


@contextmanager
def hired(
    renderer: Renderer,
    groups: Sequence[Group],
    folder: Path,
    workers: int,
    load: Loader | None,
    where: Placement,
    ray: str | None = None,
) -> Iterator[Shards]:
    """The samples, shared out; workers that are processes of their own end with the block.

    workers: processes, this one among them; the others are of this machine, or actors of the cluster at `ray`. Raises
    `PolicyError` where there are fewer GPUs, or where there is no `load`, `CachesmithError` where there is no cluster.
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
    with _lines(ray, device, wanted) as (line, devices, threads):
        recipes = _recipes(renderer, groups, folder, load, where, devices, threads)
        own: list[Worker] = [InProcess(Shard(renderer, recipes[0].groups, folder, where))]
        shards = Shards(groups, own, device, wanted)
        try:
            for number, recipe in enumerate(recipes[1:], 1):
                own.append(Remote(f"worker {number}", partial(line, recipe)))
            yield shards
        finally:
            shards.close()


class _Lines(NamedTuple):
    """How another worker is started, a device for each worker, and the threads of a CPU that each gets."""

    start: Callable[[Recipe], Line]
    devices: list[str]
    threads: int | None


@contextmanager
def _lines(ray: str | None, device: torch.device, workers: int) -> Iterator[_Lines]:
    if ray is None:
        threads = max(1, torch.get_num_threads() // workers) if device.type == "cpu" else None
        yield _Lines(Process, worker_devices(device, workers), threads)
        return
    if find_spec("ray") is None:
        raise CachesmithError("ray is not installed; install it with: pip install 'cachesmith[fleet]'")
    from cachesmith.calibrate.fleet.ray_cluster import Actor, check_room, joined_cluster

    with joined_cluster(ray):
        check_room(device.type, workers - 1)
        # an actor sees the one GPU that it was given, and as many threads as CPUs
        yield _Lines(Actor, [str(device), *[device.type] * (workers - 1)], None)


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
    adapters = {name: adapter_for(each) for name, each in denoisers(renderer.pipe).items()}
    return [
        Recipe(load, place, renderer.steps, where, renderer.common, held, whole, print, threads, adapters)
        for place, held in zip(places, shared_out(groups, len(places)), strict=True)
    ]
