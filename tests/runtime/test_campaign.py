"""A short form of the campaign in every run of the tests, and the whole of it in the slow ones."""

import pytest
from tests.runtime.campaign.run import campaign

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def test_a_short_campaign() -> None:
    record = campaign(requests=40, seed=7, seconds=3600)
    assert not record.faults
    assert record.outcomes["the policy's"] > 10 and record.outcomes["stopped"]


@pytest.mark.slow
def test_a_long_campaign() -> None:
    record = campaign(requests=10_000, seed=10_000, seconds=100_000)
    assert not record.faults and record.outcomes.total() >= 10_000
