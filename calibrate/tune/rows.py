"""Forecast weights of the whole stack on a fixed schedule, one row per step and channel: where tuning starts."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cachesmith.calibrate.fit.solvers import ridge_table, row_table
from cachesmith.policies import (
    Fitted,
    Fixed,
    Follower,
    Forecaster,
    Lagrange,
    Policy,
    Profile,
    Stack,
    halves,
    unbound,
)
from cachesmith.policies.base import Arrays

RIDGES = (None, 1.0, 0.1)
"""How closely weights follow recorded runs: not at all (a line), or with this much pull towards the line.

Weights that follow them exactly lose in closed loop.
"""

RIDGE_TAPS = 2
"""Past outputs that are fitted to recorded runs; more win there and lose in closed loop."""


class Rows(NamedTuple):
    """Weights [lanes, steps, taps, channels] of past outputs and, with one tap more for the input now, of inputs.

    With a `follower`, as many lanes more: those of its difference from the other half of guidance.
    """

    outputs: Tensor
    inputs: Tensor
    follower: Follower | None = None

    def policy(self, mask: str, prefix: str) -> Policy:
        """As a policy bound to no model: every channel is a group of its own. Inputs of no weight are left out."""
        lanes, *_, channels = self.outputs.shape
        arrays: Arrays = {
            f"{prefix}/weights": self.outputs.float().cpu().numpy(),
            f"{prefix}/ids": np.tile(np.arange(channels, dtype=np.int32), (lanes, 1)),
        }
        reads = f"{prefix}/input_weights" if self.inputs.any() else None
        if reads is not None:
            arrays[reads] = self.inputs.float().cpu().numpy()
        rows = Fitted(weights=f"{prefix}/weights", input_weights=reads, ids=f"{prefix}/ids")
        return unbound(fixed_profile(mask, Forecaster(rows=rows), self.follower), arrays)


def fitted_rows(policy: Policy, mask: str) -> Rows | None:
    """The weights that a policy has for the whole stack on the schedule `mask`, one per channel; None without."""
    for profile in policy.document.profiles.values():
        rows = profile.forecaster.rows
        if not isinstance(profile.units, Stack) or profile.gate != Fixed(mask=mask):
            continue
        if not isinstance(rows, Fitted) or rows.ids is None:
            continue
        outputs = torch.from_numpy(policy.arrays[rows.weights])
        index = torch.from_numpy(policy.arrays[rows.ids]).long()
        if rows.input_weights is None:
            inputs = outputs.new_zeros(*outputs.shape[:2], outputs.shape[2] + 1, outputs.shape[3])
        else:
            inputs = torch.from_numpy(policy.arrays[rows.input_weights])
        each = [
            torch.stack([part[lane][..., index[lane]] for lane in range(len(index))])
            for part in (outputs, inputs)
        ]
        return Rows(each[0], each[1], profile.units.follower)
    return None


def line(mask: str, follower: Follower | None = None) -> Policy:
    """The whole stack on a fixed schedule, every output forecast by the line through the last two computed ones."""
    return unbound(fixed_profile(mask, Forecaster(rows=Lagrange(order=1)), follower))


def starting_rows(
    mask: str,
    taps: int,
    shape: tuple[int, int],
    grams: Mapping[str, Tensor],
    ridge: float | None,
    follower: Follower | None = None,
) -> Rows:
    """Weights fitted to recorded runs (a line where `ridge` is None), no weight on inputs.

    shape: lanes and channels; grams: lane -> [requests, channels, steps, steps], see `channels.record_grams`. The
    differences of a `follower` start as lines.
    """
    lanes, channels = shape
    leading, following = halves(mask)
    used = min(taps, RIDGE_TAPS)
    tables = [_line(leading, used)] * lanes + [_line(following, used)] * (lanes if follower else 0)
    if ridge is not None:
        tables[:lanes] = [ridge_table(gram.mean(0), leading, used, ridge) for gram in grams.values()]
    outputs = torch.zeros(len(tables), len(mask), taps, channels)
    for lane, table in enumerate(tables):
        outputs[lane, :, :used] = table.float()
    return Rows(outputs, torch.zeros(len(tables), len(mask), taps + 1, channels), follower)


def _line(mask: str, taps: int) -> Tensor:
    """One weight for all channels: [steps, taps, 1]."""
    return row_table(Lagrange(order=1), mask, taps)[..., None]


def fixed_profile(mask: str, forecaster: Forecaster, follower: Follower | None = None) -> Profile:
    """The whole stack on a fixed schedule."""
    return Profile(units=Stack(follower=follower), gate=Fixed(mask=mask), forecaster=forecaster)
