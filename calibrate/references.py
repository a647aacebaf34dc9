"""Uncached runs of the fitting samples, kept in the work folder: they are the dearest part and serve every profile.

A file holds one sample, so that they are found again whatever the batch and however many workers there are.
"""

from pathlib import Path

import torch

from cachesmith.calibrate.closed_loop.batch import Uncached, sample
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.files import replacing
from cachesmith.sampling.render import Renderer


def reference(renderer: Renderer, group: Group, folder: Path) -> tuple[Uncached, int]:
    """The samples of `group`, and how many of them had no file in `folder`: these are sampled, and written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.pt" for number in group.numbers]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        made = sample(renderer, [group.requests[i] for i in missing])
        for row, i in enumerate(missing):
            with replacing(paths[i]) as part:
                torch.save({"path": made.path[row].clone(), "images": made.images[row].clone()}, part)
        if len(missing) == len(paths):
            return made, len(missing)
    known = [torch.load(path, weights_only=True) for path in paths]
    path, images = (torch.stack([each[name] for each in known]) for name in ("path", "images"))
    return Uncached(group.requests, path, images), len(missing)
