"""An export that is killed, interrupted or out of disk is resumed to the same bundle; one graph is lost at most."""

import pytest
from tests.reliability.ended_early import printed


@pytest.mark.parametrize(
    ("count", "how"),
    [(8, ""), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((400, ""), (32, "real")))],
)
def test_exports_that_end_early(count: int, how: str) -> None:
    counts = printed("tests.reliability.killed_exports", count, count, how)["counts"]
    assert sum(n for said, n in counts.items() if ":" in said) == count
    assert counts["graphs made again"] <= count
