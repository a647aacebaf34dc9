"""What the blocks put out, step by step: a fixed random subset of each sample's last hidden state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.record.recorder import SKETCH
from cachesmith.policies import PolicyError, Stack
from cachesmith.runtime import UnitResult, Watcher, watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class FinalFeatures(Watcher):
    """Keeps `SKETCH` elements a sample of input + residual of the stack, at every step."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.kept: dict[tuple[int, str, int], Tensor] = {}
        self._seed = seed
        self._elements: Tensor | None = None

    def observe(self, result: UnitResult) -> None:
        """Keep what the stack puts out now."""
        if len(result.feature) != 1:
            raise PolicyError(
                f"this model's blocks put out {len(result.feature)} streams, and this method forecasts one; fit another"
            )
        if self._tick.step is None:
            return
        flat = (result.inputs[0].float() + result.feature[0].float()).flatten(1)
        if self._elements is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._elements = torch.randint(flat.shape[1], (min(SKETCH, flat.shape[1]),), generator=generator)
        key = (self._tick.run, self._tick.branch, self._tick.step)
        self.kept[key] = flat[:, self._elements.to(flat.device)].cpu()


def final_features(renderer: Renderer, requests: Sequence[Request]) -> Tensor:
    """Sample `requests` uncached and return [steps, samples, elements]; branches of guidance are samples of their own.

    Raises `PolicyError` where the blocks put out several streams.
    """
    features = FinalFeatures()
    with watch(renderer.pipe, Stack(), features):
        renderer(requests)
    runs = sorted({key[:2] for key in features.kept})
    steps = range(renderer.steps)
    return torch.cat([torch.stack([features.kept[*run, step] for step in steps]) for run in runs], dim=1)
