"""Runs that begin in the middle of their scheduler's timesteps, as of pictures that are changed."""

import optuna
import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.closed_loop.axes import segments
from cachesmith.calibrate.closed_loop.loop import Loop, Past
from cachesmith.calibrate.schedules.search import RunShape, schedule_of
from cachesmith.policies import PolicyError, Stack, computations
from cachesmith.runtime import Tick, UnitCall
from cachesmith.runtime.models.units import resolve_units


def test_a_schedule_has_no_letters_for_steps_before() -> None:
    schedule = schedule_of(optuna.trial.FixedTrial({"power": 1.3}), 3, RunShape(8, starts=(2,)))
    assert schedule.mask[:3] == "--C" and len(schedule.mask) == 8 and computations(schedule.mask) == 3
    first, *_, last = segments(schedule.mask)
    assert first.start == 2 and last.stop == 8
    assert schedule.own(2).mask == schedule.mask


def test_requests_that_begin_elsewhere_are_told() -> None:
    (stack,) = resolve_units(tiny_dit().transformer, Stack())
    loop = Loop("--CFFF", {}, Past(), None)
    loop.begin(Tick(0, 3, "0"))
    with pytest.raises(PolicyError, match="several values of `strength`"):
        loop.answer(UnitCall(stack, (torch.zeros(1, 4, 8),)))
