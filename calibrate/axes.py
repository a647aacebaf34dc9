"""The axes in which weights are tuned.

What a forecast reads (past outputs, past inputs, the input now) is nearly equal; what is to be found lies in small
differences. Adam scales every weight by itself, and along a valley that no single weight spans it creeps. So weights
are tuned in the principal axes of what they multiply, for every step and channel. An axis of second moment s is scaled
by s^(-1/4): half way between equal steps of the weights (power 0) and equal steps of the forecast (-1/2).
"""

import torch
from torch import Tensor

from cachesmith.calibrate.weights import Rows
from cachesmith.runtime.history import Feature

POWER = 0.25
"""Axes are scaled by their second moment to minus this power."""

SMALLEST = 1e-6
"""Axes of a smaller part of the largest second moment are noise, and are scaled no further."""


class Moments:
    """Second moments [lanes, steps, channels, D, D], float32, of the D tensors that each forecast reads.

    D = 2 taps + 1: outputs and inputs of the last computed steps, and the input now; zero where there were none yet.
    """

    def __init__(self, rows: Rows):
        lanes, steps, taps, channels = rows.outputs.shape
        size = 2 * taps + 1
        self.taps, self.total = taps, rows.outputs.new_zeros(lanes, steps, channels, size, size)

    def add(self, lane: int, step: int, past: list[tuple[Feature, Feature]], now: Tensor) -> None:
        """A forecast from `past`, pairs of inputs and outputs with the newest first, and the input `now`."""
        missing = [torch.zeros_like(now)] * (self.taps - len(past))
        outputs, inputs = [made[lane] for _, made in past], [entered[lane] for entered, _ in past]
        read = torch.stack([*outputs, *missing, *inputs, *missing, now], -1).float().flatten(0, -3)
        self.total[lane, step] += torch.einsum("nci,ncj->cij", read, read) / len(read)

    def axes(self) -> Tensor:
        """Scaled principal axes as columns [lanes, steps, channels, D, D]; none where nothing was read."""
        total = self.total.double().cpu()
        moments, axes = torch.linalg.eigh(total)
        largest = moments[..., -1:].clamp(min=torch.finfo(torch.float64).tiny)
        scaled = axes * (moments.clamp(min=0) / largest + SMALLEST).pow(-POWER)[..., None, :]
        read = total.diagonal(dim1=-2, dim2=-1) > 0
        found: Tensor = scaled * read[..., None]
        return found.to(self.total)


def moved(start: Rows, axes: Tensor, along: Tensor) -> Rows:
    """The weights `start` after going `along` the axes: [lanes, steps, D, channels]."""
    change = torch.einsum("lkcij,lkjc->lkic", axes, along)
    taps = start.outputs.shape[2]
    return Rows(start.outputs + change[:, :, :taps], start.inputs + change[:, :, taps:])
