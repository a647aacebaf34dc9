"""LPIPS (Zhang et al., arXiv 1801.03924), version 0.1 with VGG16, in plain torch, from a safetensors file.

`benchmarks/fetch_lpips.py` writes the file. torchmetrics' own needs torchvision and fetches VGG16 from the network when
it is made; it reads no file of weights. The distance is near 0 for pictures that look alike and grows to about 1.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cachesmith.policies import CachesmithError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions; features are taken at the end of each stage."""
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the training pictures, in [-1, 1]."""
SMALLEST = 64
"""Smaller pictures are enlarged (bilinear) to this many pixels on their shorter side: VGG16 halves them four times."""
_CHUNK = 16
"""Pictures compared at once."""


class Lpips(nn.Module):
    """Two batches of pictures [N, C, H, W] in [0, 1] (grey or colour) to distances [N]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise((before, *stage)))
            for before, stage in zip((3, *(stage[-1] for stage in STAGES)), STAGES, strict=False)
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(stage[-1])) for stage in STAGES)
        self.register_buffer("shift", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Return the distance of every pair."""
        parts = [slice(start, start + _CHUNK) for start in range(0, len(reference), _CHUNK)]
        return torch.cat([self._distance(reference[part], candidate[part]) for part in parts])

    def _distance(self, reference: Tensor, candidate: Tensor) -> Tensor:
        found: list[Tensor] = []
        a, b = self._prepared(reference), self._prepared(candidate)
        for index, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            a, b = (self._through(stage, x, pool=index > 0) for x in (a, b))
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
            found.append(torch.einsum("nchw,c->n", difference, head) / difference[0, 0].numel())
        return torch.stack(found).sum(0)

    def _prepared(self, images: Tensor) -> Tensor:
        colour = images.float().clamp(0, 1).expand(-1, 3, -1, -1)
        smallest = min(colour.shape[-2:])
        if smallest < SMALLEST:
            colour = F.interpolate(
                colour, scale_factor=SMALLEST / smallest, mode="bilinear", align_corners=False
            )
        prepared: Tensor = (2 * colour - 1 - self.shift) / self.scale
        return prepared

    @staticmethod
    def _through(stage: nn.Module, x: Tensor, pool: bool) -> Tensor:
        x = F.max_pool2d(x, 2) if pool else x
        for layer in stage.children():
            x = F.relu(layer(x))
        return x


def load_lpips(path: Path) -> Lpips:
    """Read the network. Raises `CachesmithError` where the file does not hold it."""
    network = Lpips()
    try:
        weights: Mapping[str, Tensor] = load_file(path)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CachesmithError(
            f"{path} does not hold LPIPS weights ({first}); make it with benchmarks/fetch_lpips.py"
        ) from None
    return network.eval().requires_grad_(False)
