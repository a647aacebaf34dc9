"""A calibration that is killed, interrupted or out of disk is resumed to the same policy, and loses one unit of work.

`python -m tests.reliability.killed_calibrations COUNT SEED` prints the figures of docs/reliability.md.
"""

import pytest
from tests.reliability.ended_early import printed


@pytest.mark.parametrize("count", [1, pytest.param(32, marks=pytest.mark.slow)])
def test_calibrations_that_end_early(count: int) -> None:
    result = printed("tests.reliability.killed_calibrations", count, count)
    assert sum(result["counts"].values()) == count == len(result["lost"])
    # a resumption asks the model once more how guidance is computed
    assert max(result["lost"]) <= result["largest unit"] + 1
