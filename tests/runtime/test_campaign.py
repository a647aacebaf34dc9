"""A short form of the campaign in every run of the tests, and the whole of it in the slow ones."""

import pytest
from tests.runtime.campaign import EVENTS, campaign

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def test_a_short_campaign() -> None:
    outcomes, faults = campaign(requests=60, seed=7, seconds=60)
    assert not faults and outcomes["the policy's"] > 10 and outcomes["stopped"]


@pytest.mark.slow
def test_a_long_campaign() -> None:
    outcomes, faults = campaign(requests=10_000, seed=10_000, seconds=3600)
    assert not faults and outcomes.total() >= 10_000 and len(EVENTS) > 10
