"""Uncached runs of the fitting samples, kept in the work folder: they are the dearest part and serve every profile."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cachesmith.calibrate.closed_loop.batch import Uncached, sample
from cachesmith.files import replacing
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def references(
    renderer: Renderer, batches: Sequence[Sequence[Request]], folder: Path, advance: Callable[[float], None]
) -> list[Uncached]:
    """Sample what is not in `folder` yet; `advance(samples)` is called for each batch that was."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, batch in enumerate(batches):
        path = folder / f"{number:04d}.pt"
        if path.exists():
            known = torch.load(path, weights_only=True)
            found.append(Uncached(batch, known["path"], known["images"]))
            continue
        found.append(sample(renderer, batch))
        with replacing(path) as part:
            torch.save({"path": found[-1].path, "images": found[-1].images}, part)
        advance(len(batch))
    return found


def total(samples: Sequence[Uncached], count: int) -> list[Uncached]:
    """The first batches with at least `count` samples."""
    chosen: list[Uncached] = []
    for each in samples:
        if sum(len(batch.requests) for batch in chosen) < count:
            chosen.append(each)
    return chosen
