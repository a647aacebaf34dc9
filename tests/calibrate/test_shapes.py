"""Which schedules are tried first."""

import pytest

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.schedules.search import RunShape, first_shapes, usual_schedule
from cachesmith.policies.schedule import by_halves, spaced


@pytest.mark.parametrize(("budget", "power"), [(5, 1.3), (8, 1.3), (10, 1.5), (14, 1.5)])
def test_computed_steps_are_spread_more_unevenly_where_there_are_many(budget: int, power: float) -> None:
    assert usual_schedule(budget, RunShape(50)) == Schedule(spaced(budget, 50, power))
    assert first_shapes(budget, RunShape(50)) == [{"power": power}, {"power": 1.0}]


def test_half_of_guidance_is_computed_at_more_steps() -> None:
    assert usual_schedule(8, RunShape(50, "second")) == Schedule(by_halves(8, 50, 1.15), "second")
