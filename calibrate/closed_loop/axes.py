"""What is fitted in a segment: corrections of a line's weights that grow over the segment as a line's error does.

A segment is the steps from one that is computed (in full or by half) to the next. All its forecasts are linear in the
same tensors, F_0 F_1 F_2 (what the blocks added at the last computed steps), I_0 I_1 I_2 (what went into them) and I
(what goes in now); weights are rows over these, in this order: `RAW` of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.fit.solvers import newest_computed, row_table
from cachesmith.policies import Lagrange

TAPS = 3
RAW = 2 * TAPS + 1
AXES = 6


class Segment(NamedTuple):
    """Steps `start` .. `stop` - 1, of which the first is computed."""

    start: int
    stop: int


def segments(mask: str) -> list[Segment]:
    """Cut a schedule of C, H and F at the steps that are computed in full or by half."""
    computed = [step for step, letter in enumerate(mask) if letter in "CH"]
    return [Segment(a, b) for a, b in zip(computed, [*computed[1:], len(mask)], strict=True)]


def line_rows(mask: str) -> Tensor:
    """Weights of the line through the last two computed outputs (reuse where there is one): [steps, RAW, 1]."""
    table = row_table(Lagrange(order=1), mask, TAPS).float()
    return torch.nn.functional.pad(table, (0, RAW - TAPS))[..., None]


def axes(mask: str, step: int) -> Tensor:
    """Corrections of a forecast step's weights for one unit of every unknown: [RAW, AXES].

    With t = (s - s_0) / (s_0 - s_1), s_j the computed steps before s, newest first: t F_0, t (F_0 - F_1), the Newton
    form's quadratic term t (t + 1) / 2 (F_0 - F_1 - q (F_1 - F_2)), q = (s_0 - s_1) / (s_1 - s_2); the same of inputs
    but for the quadratic one, and I - I_0. Where the history is shorter, columns are zero.
    """
    past = newest_computed(mask, step, TAPS)
    made, entered, now = torch.split(torch.eye(RAW), [TAPS, TAPS, 1])
    gap = past[0] - past[1] if len(past) > 1 else 1
    t = (step - past[0]) / gap
    columns = torch.zeros(AXES, RAW)
    columns[0], columns[1], columns[2] = t * made[0], t * entered[0], now[0] - entered[0]
    if len(past) > 1:
        columns[3], columns[4] = t * (made[0] - made[1]), t * (entered[0] - entered[1])
    if len(past) > 2:
        q = gap / (past[1] - past[2])
        columns[5] = t * (t + 1) / 2 * (made[0] - made[1] - q * (made[1] - made[2]))
    return columns.T
