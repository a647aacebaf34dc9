"""Uncached runs of the fitting samples, kept in the work folder: they are the dearest part and serve every profile.

A file holds one sample, so that they are found again whatever the batch and however many workers there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cachesmith.calibrate.closed_loop.batch import Uncached, sample
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.work_folder import load_tensors, save_tensors
from cachesmith.sampling.out_of_memory import in_memory
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


@dataclass(frozen=True)
class _Called:
    """Requests that are sampled in one call."""

    requests: Sequence[Request]

    def __len__(self) -> int:
        return len(self.requests)

    def parts(self, size: int) -> list["_Called"]:
        return [_Called(self.requests[i : i + size]) for i in range(0, len(self.requests), size)]


def reference(renderer: Renderer, group: Group, folder: Path) -> tuple[Uncached, int]:
    """The samples of `group`, and how many were sampled: all, where one has no file in `folder`, and what has none is
    written. A batch of its own would round the missing ones differently from those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.pt" for number in group.numbers]
    missing = [path for path in paths if not path.exists()]
    if missing:
        called, made = in_memory([_Called(group.requests)], lambda each: sample(renderer, each.requests))
        for place, (each, row) in zip(paths, ((m, r) for m in made for r in range(len(m))), strict=True):
            if place in missing:
                save_tensors(place, {"path": each.path[row].clone(), "images": each.images[row].clone()})
        if len(missing) == len(paths) and len(called) == 1:
            return made[0], len(paths)
    known = [load_tensors(path) for path in paths]
    path, images = (torch.stack([each[name] for each in known]) for name in ("path", "images"))
    return Uncached(group.requests, path, images), len(paths) if missing else 0
