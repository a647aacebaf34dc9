"""The axes in which weights are tuned.

Outputs of neighbouring steps are nearly equal, and so are inputs; what is to be found lies in their small differences.
Adam scales every weight by itself, and creeps along a valley that no single weight spans. So weights are tuned in the
principal axes of what they multiply, for every step and channel. An axis of second moment s, where S is the largest,
is scaled by (s / S)^(-1/4): half way between equal steps of the weights (power 0) and equal steps of the forecast
(-1/2). The rule is this project's; Shampoo (arXiv 1802.09568) and SOAP (arXiv 2409.11321) take axes from gradients.

How much a channel's forecast matters to the picture differs by orders between channels and steps, too. So all axes of
a channel at a step, where their gradients have the root mean square g and G is the median of all, are scaled by
(g / G)^(-1/2), again half way: K-FAC (arXiv 1503.05671) would divide by both factors in full.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.record.channels import temporal_gram
from cachesmith.calibrate.tune.rows import Rows

POWER = 0.25
"""Axes are scaled by their part of the largest second moment to minus this power."""

SMALLEST = 1e-6
"""Axes of a smaller part of the largest second moment are scaled as if they had this one."""

PILOTS = 4
"""Batches whose gradients tell how much each channel matters at each step."""

LEAST = 1e-2
"""Channels of a smaller part of the median gradient are scaled as if they had this one."""


class Moments:
    """Second moments of the K = 2 taps + 1 tensors that each forecast reads, summed over samples and tokens.

    Outputs of the last computed steps come first, then their inputs, then the input now; zero where there were none
    yet. `total`: [lanes, steps, channels, K, K], float64, on the device of the rows.
    """

    def __init__(self, rows: Rows):
        lanes, steps, taps, channels = rows.outputs.shape
        size = 2 * taps + 1
        self.taps = taps
        self.total = rows.outputs.new_zeros(lanes, steps, channels, size, size, dtype=torch.float64)

    def add(self, lane: int, step: int, past: list[tuple[Tensor, Tensor]], now: Tensor) -> None:
        """Add a forecast of one lane: from `past` (inputs, outputs), newest first, and `now` [samples, tokens, C]."""
        missing = [torch.zeros_like(now)] * (self.taps - len(past))
        outputs, inputs = [made for _, made in past], [entered for entered, _ in past]
        read = torch.stack([*outputs, *missing, *inputs, *missing, now])
        self.total[lane, step] += temporal_gram(read) * now[..., 0].numel()

    def axes(self) -> Tensor:
        """Scaled principal axes as columns: like `total`, but float32; zero for what was not read."""
        total = self.total.cpu()
        moments, axes = torch.linalg.eigh(total)
        largest = moments[..., -1:].clamp(min=torch.finfo(total.dtype).tiny)
        scaled = axes * (moments.clamp(min=0) / largest + SMALLEST).pow(-POWER)[..., None, :]
        found: Tensor = scaled * (total.diagonal(dim1=-2, dim2=-1) > 0)[..., None]
        return found.to(self.total.device, torch.float32)


def balanced(axes: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """`axes`, scaled by how much channels matter: `gradients` [lanes, steps, K, channels] of coordinates, by batch."""
    size = torch.stack([gradient.double().square().mean(2) for gradient in gradients]).mean(0).sqrt()
    if not size.any():
        return axes
    part = size / size[size > 0].median()
    return axes * part.clamp(min=LEAST).rsqrt().to(axes)[..., None, None]


def rows_at(start: Rows, axes: Tensor, coordinates: Tensor) -> Rows:
    """The weights that lie at `coordinates` [lanes, steps, K, channels] of `axes`, seen from `start`."""
    change = torch.einsum("lkcij,lkjc->lkic", axes, coordinates)
    taps = start.outputs.shape[2]
    return Rows(start.outputs + change[:, :, :taps], start.inputs + change[:, :, taps:], start.follower)
