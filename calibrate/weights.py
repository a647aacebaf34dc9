"""Forecast weights of the whole stack on a fixed schedule, one row per step and channel: where tuning starts."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cachesmith.calibrate.solvers import ridge_table, row_table
from cachesmith.policies import Fitted, Fixed, Forecaster, Lagrange, Policy, Profile, Stack, unbound
from cachesmith.policies.base import Arrays

RIDGES = (None, 1.0, 0.1)
"""How closely weights follow recorded runs: not at all (a line), or with this much pull towards the line.

Weights that follow them exactly lose in closed loop.
"""

RIDGE_TAPS = 2
"""Past outputs that are fitted to recorded runs; more win there and lose in closed loop."""


class Rows(NamedTuple):
    """Weights [lanes, steps, taps, channels] of past outputs and, with one tap more for the input now, of inputs."""

    outputs: Tensor
    inputs: Tensor

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
        return unbound(fixed_profile(mask, Forecaster(rows=rows)), arrays)


def fitted_rows(policy: Policy, mask: str) -> Rows | None:
    """The weights that a policy has for the whole stack on the schedule `mask`, one per channel; None without."""
    for profile in policy.document.profiles.values():
        rows = profile.forecaster.rows
        on_mask = isinstance(profile.units, Stack) and profile.gate == Fixed(mask=mask)
        if not on_mask or not isinstance(rows, Fitted) or rows.ids is None:
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
        return Rows(*each)
    return None


def line(mask: str) -> Policy:
    """The whole stack on a fixed schedule, every output forecast by the line through the last two computed ones."""
    return unbound(fixed_profile(mask, Forecaster(rows=Lagrange(order=1))))


def starting_rows(
    mask: str, taps: int, shape: tuple[int, int], grams: Mapping[str, Tensor], ridge: float | None
) -> Rows:
    """Weights fitted to recorded runs (a line where `ridge` is None), no weight on inputs.

    shape: lanes and channels; grams: lane -> [requests, channels, steps, steps], see `channels.record_grams`.
    """
    lanes, channels = shape
    outputs = torch.zeros(lanes, len(mask), taps, channels)
    used = min(taps, RIDGE_TAPS)
    if ridge is None:
        outputs[:, :, :used] = row_table(Lagrange(order=1), mask, used)[..., None].float()
    else:
        for lane, gram in enumerate(grams.values()):
            outputs[lane, :, :used] = ridge_table(gram.mean(0), mask, used, ridge).float()
    return Rows(outputs, torch.zeros(lanes, len(mask), taps + 1, channels))


def fixed_profile(mask: str, forecaster: Forecaster) -> Profile:
    """The whole stack on a fixed schedule."""
    return Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=forecaster)
