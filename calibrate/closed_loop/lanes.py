"""Which weights there are: of the blocks, and of a half of guidance that follows the other."""

from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, RAW, TAPS, Segment, axes, line_rows
from cachesmith.policies import Fitted, Fixed, Follower, Forecaster, Policy, Profile, Stack, halves, unbound
from cachesmith.policies.base import Arrays

Rows = dict[int, Tensor]
"""Weights by step: [..., lanes, RAW, channels], float32."""


class Schedule(NamedTuple):
    """A mask of C, H and F, and the half of guidance that follows where it has an H."""

    mask: str
    follower: Follower | None = None

    @property
    def stack(self) -> Stack:
        """The units that it is for."""
        return Stack(follower=self.follower)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The blocks' own schedule and, with a follower, that of its difference, in C and F."""
        leading, following = halves(self.mask)
        return (leading,) if self.follower is None else (leading, following)


def line_weights(schedule: Schedule, channels: int, device: torch.device) -> Rows:
    """The line through the last two computed outputs, on every step that forecasts anything."""
    tables = torch.stack([line_rows(letters) for letters in schedule.lanes], 1).expand(-1, -1, -1, channels)
    forecast = [step for step, letter in enumerate(schedule.mask) if letter != "C"]
    return {step: tables[step].to(device) for step in forecast}


def corrected(schedule: Schedule, segment: Segment, base: Rows, theta: Tensor) -> Rows:
    """The segment's weights: `base` and what theta [..., lanes, AXES, channels] adds."""
    found = {}
    for step in range(*segment):
        if step not in base:
            continue
        tables = torch.stack(
            [
                axes(letters, step) if letters[step] == "F" else torch.zeros(RAW, AXES)
                for letters in schedule.lanes
            ]
        )
        found[step] = base[step] + torch.einsum("ljk,...lkc->...ljc", tables.to(theta), theta)
    return found


def as_policy(schedule: Schedule, rows: Rows, prefix: str) -> Policy:
    """As a policy bound to no model: every channel is a group of its own.

    Weights are zero on computed steps; a step by half has weights of the follower's difference alone.
    """
    lanes, _, channels = next(iter(rows.values())).shape
    table = torch.zeros(lanes, len(schedule.mask), RAW, channels)
    for step, row in rows.items():
        for lane, letters in enumerate(schedule.lanes):
            if letters[step] == "F":
                table[lane, step] = row[lane].float().cpu()
    arrays: Arrays = {
        f"{prefix}/weights": table[:, :, :TAPS].contiguous().numpy(),
        f"{prefix}/input_weights": table[:, :, TAPS:].contiguous().numpy(),
        f"{prefix}/ids": torch.arange(channels, dtype=torch.int32).repeat(lanes, 1).numpy(),
    }
    fitted = Fitted(weights=f"{prefix}/weights", input_weights=f"{prefix}/input_weights", ids=f"{prefix}/ids")
    gate, forecaster = Fixed(mask=schedule.mask), Forecaster(rows=fitted)
    return unbound(Profile(units=schedule.stack, gate=gate, forecaster=forecaster), arrays)


def of_policy(policy: Policy, name: str) -> tuple[Schedule, Rows] | None:
    """Schedule and weights of a profile of the whole stack; None where it has others, or none for each channel."""
    profile = policy.document.profiles[name]
    rows = profile.forecaster.rows
    if not isinstance(profile.units, Stack) or not isinstance(profile.gate, Fixed) or profile.gate.groups:
        return None
    if not isinstance(rows, Fitted) or rows.ids is None or rows.input_weights is None:
        return None
    schedule = Schedule(profile.gate.mask, profile.units.follower)
    index = torch.from_numpy(policy.arrays[rows.ids].copy()).long()
    both = [
        torch.from_numpy(policy.arrays[each].copy()).float() for each in (rows.weights, rows.input_weights)
    ]
    if both[0].shape[:2] != (len(schedule.lanes), len(schedule.mask)) or both[0].shape[2] != TAPS:
        return None
    table = torch.cat(both, 2)
    each = torch.stack([table[lane][..., index[lane]] for lane in range(len(index))], 1)
    return schedule, {step: each[step] for step, letter in enumerate(schedule.mask) if letter != "C"}
