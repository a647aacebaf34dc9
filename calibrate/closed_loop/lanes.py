"""Which weights there are: of the blocks, and of a half of guidance that follows the other."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, RAW, TAPS, Segment, axes, line_rows
from cachesmith.calibrate.fit.solvers import newest_computed
from cachesmith.policies import (
    MAIN,
    DenoiserProfile,
    Fitted,
    Fixed,
    Follower,
    Forecaster,
    Policy,
    Profile,
    Stack,
    denoiser_policy,
    halves,
    lane_ids,
    unbound,
)
from cachesmith.policies.base import Arrays
from cachesmith.policies.schedule import run_mask

Rows = dict[int, Tensor]
"""Weights by step: [..., lanes, RAW, channels], float32; the channels are those of all streams in a row."""


class Schedule(NamedTuple):
    """A mask of C, H and F, and the half of guidance that follows where it has an H.

    starts: the steps at which a part of the run begins, the first where the run does: steps before are -. Each is
    computed, and nothing is forecast from the parts before: no denoiser has a history of another's, and no branch of
    guidance one of steps at which it is off.
    """

    mask: str
    follower: Follower | None = None
    starts: tuple[int, ...] = (0,)

    @property
    def spans(self) -> list[Segment]:
        """The steps of every part."""
        return [Segment(*span) for span in pairwise((*self.starts, len(self.mask)))]

    def own(self, step: int) -> "Schedule":
        """That of the part that `step` is in: the steps of others are -."""
        start, stop = next(span for span in self.spans if step < span.stop)
        letters = self.mask[start:stop].rjust(stop, "-").ljust(len(self.mask), "-")
        return self._replace(mask=letters, starts=(0,))

    @property
    def stack(self) -> Stack:
        """The units that it is for."""
        return Stack(follower=self.follower)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The blocks' own schedule and, with a follower, that of its difference, in C and F."""
        leading, following = halves(self.mask)
        return (leading,) if self.follower is None else (leading, following)


def in_parts(schedule: Schedule, rows: Rows, starts: tuple[int, ...]) -> Schedule | None:
    """The same in the parts that begin at `starts`; None where one does not begin with a computed step, or weights of
    it are for outputs of the part before."""
    parts = schedule._replace(starts=starts)
    if any(schedule.mask[start] != "C" for start in starts):
        return None
    for step, row in rows.items():
        for lane, letters in enumerate(parts.own(step).lanes):
            known = len(newest_computed(letters, step, TAPS))
            if row[lane, known:TAPS].any() or row[lane, TAPS + known : 2 * TAPS].any():
                return None
    return parts


def line_weights(schedule: Schedule, channels: int, device: torch.device) -> Rows:
    """The line through the last two computed outputs, on every step that forecasts anything."""
    rows: Rows = {}
    for start, stop in schedule.spans:
        own = schedule.own(start)
        tables = torch.stack([line_rows(letters) for letters in own.lanes], 1).expand(-1, -1, -1, channels)
        forecast = [step for step in range(start, stop) if schedule.mask[step] != "C"]
        rows |= {step: tables[step].to(device) for step in forecast}
    return rows


def corrected(schedule: Schedule, segment: Segment, base: Rows, theta: Tensor) -> Rows:
    """The segment's weights: `base` and what theta [..., lanes, AXES, channels] adds."""
    found, lanes = {}, schedule.own(segment.start).lanes
    for step in range(*segment):
        if step not in base:
            continue
        tables = torch.stack(
            [axes(letters, step) if letters[step] == "F" else torch.zeros(RAW, AXES) for letters in lanes]
        )
        found[step] = base[step] + torch.einsum("ljk,...lkc->...ljc", tables.to(theta), theta)
    return found


def as_policy(
    schedule: Schedule,
    rows: Rows,
    prefix: str,
    names: Sequence[Sequence[str]] = ((MAIN,),),
    channels: Sequence[int] | None = None,
) -> Policy:
    """As a policy bound to no model; names: the denoisers of every part. Every channel is a group of its own.

    channels: of each stream; by default there is one.
    """
    arrays: Arrays = {}
    parts: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for called in names for name in called):
        own = _part_of(schedule, [name in called for called in names])
        folder = prefix if name == MAIN else f"{prefix}/{name}"
        fitted = Fitted(
            weights=f"{folder}/weights", input_weights=f"{folder}/input_weights", ids=f"{folder}/ids"
        )
        arrays |= _arrays(own, rows, folder, channels or next(iter(rows.values())).shape[-1:])
        gate, forecaster = Fixed(mask=own.mask), Forecaster(rows=fitted)
        parts[name] = {"units": own.stack, "gate": gate, "forecaster": forecaster}
    further = {name: DenoiserProfile(**part) for name, part in parts.items() if name != MAIN}
    return unbound(Profile(**parts[MAIN], denoisers=further), arrays)


def _part_of(schedule: Schedule, called: Sequence[bool]) -> Schedule:
    """That of a denoiser which is `called` in some parts: the steps of others are -."""
    masks = [schedule.own(start).mask for start, own in zip(schedule.starts, called, strict=True) if own]
    return schedule._replace(mask=run_mask(masks), starts=(0,))


def _arrays(schedule: Schedule, rows: Rows, prefix: str, channels: Sequence[int]) -> Arrays:
    """Weights are zero on steps that are computed or another denoiser's; a step by half has weights of the follower's
    difference alone. A policy's lane is one stream of one of ours; those of fewer channels end in -1."""
    count, most = len(channels), max(channels)
    table = torch.zeros(len(schedule.lanes) * count, len(schedule.mask), RAW, most)
    ids = torch.full((len(table), most), -1, dtype=torch.int32)
    for place in range(len(table)):
        ids[place, : channels[place % count]] = torch.arange(channels[place % count])
    for step, row in rows.items():
        for lane, letters in enumerate(schedule.lanes):
            if letters[step] == "F":
                for stream, own in enumerate(torch.split(row[lane].float().cpu(), [*channels], -1)):
                    table[lane * count + stream, step, :, : own.shape[-1]] = own
    return {
        f"{prefix}/weights": table[:, :, :TAPS].contiguous().numpy(),
        f"{prefix}/input_weights": table[:, :, TAPS:].contiguous().numpy(),
        f"{prefix}/ids": ids.numpy(),
    }


def of_policy(policy: Policy, name: str) -> tuple[Schedule, Rows] | None:
    """Schedule and weights of a profile of the whole stack; None where it has others, or none for each channel."""
    found: list[tuple[Schedule, Rows]] = []
    for denoiser in (MAIN, *policy.document.profiles[name].denoisers):
        part = denoiser_policy(policy, denoiser)
        known = None if part is None else _of_part(part, name)
        if known is None:
            return None
        found.append(known)
    if len(found) == 1:
        return found[0]
    found.sort(key=lambda each: each[0].mask.index("C"))
    letters = ["".join(set(column) - {"-"}) for column in zip(*(each.mask for each, _ in found), strict=True)]
    if any(len(letter) != 1 for letter in letters):
        return None  # not one denoiser at every step
    starts = tuple(each.mask.index("C") for each, _ in found)
    rows = {step: row for schedule, own in found for step, row in own.items() if schedule.mask[step] != "-"}
    return Schedule("".join(letters), found[0][0].follower, starts), rows


def _of_part(policy: Policy, name: str) -> tuple[Schedule, Rows] | None:
    profile = policy.document.profiles[name]
    rows = profile.forecaster.rows
    if not isinstance(profile.units, Stack) or not isinstance(profile.gate, Fixed) or profile.gate.groups:
        return None
    if not isinstance(rows, Fitted) or rows.ids is None or rows.input_weights is None:
        return None
    schedule = Schedule(profile.gate.mask, profile.units.follower)
    index = [torch.from_numpy(lane_ids(ids).copy()).long() for ids in policy.arrays[rows.ids]]
    streams, left = divmod(len(index), len(schedule.lanes))
    both = [
        torch.from_numpy(policy.arrays[each].copy()).float() for each in (rows.weights, rows.input_weights)
    ]
    if left or both[0].shape[:2] != (len(index), len(schedule.mask)) or both[0].shape[2] != TAPS:
        return None
    table = torch.cat(both, 2)
    found = [table[lane][..., index[lane]] for lane in range(len(index))]
    each = torch.stack(
        [torch.cat(found[lane : lane + streams], -1) for lane in range(0, len(found), streams)], 1
    )
    return schedule, {step: each[step] for step, letter in enumerate(schedule.mask) if letter != "C"}
