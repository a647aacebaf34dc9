"""Samplers of few steps: calibrated end to end, and used at just so many steps."""

from pathlib import Path

import pytest
from tests.calibrate.small import pipeline, run
from tests.tiny import sample_dit

from cachesmith.calibrate.schedules.search import RunShape, usual_schedule
from cachesmith.policies import computations
from cachesmith.runtime import apply


def test_four_steps_end_to_end(tmp_path: Path) -> None:
    policy = run(tmp_path, steps=4, speedups=(4 / 3, 2.0), budget=10.0)
    nfc = {name: profile.nfc for name, profile in policy.document.profiles.items()}
    assert nfc["balanced"] == 2 and nfc["1.33333x"] in (2, 3)  # what does no better computes no more
    three, two = (policy.profile(name).quality for name in ("1.33333x", "balanced"))
    assert three is not None and two is not None and three.psnr >= two.psnr
    pipe = pipeline()
    with apply(pipe, policy, "1.33333x") as session:
        sample_dit(pipe, steps=4, guidance_scale=1.5)
    assert session.stats.nfc == nfc["1.33333x"] and not session.stats.fallbacks
    with apply(pipe, policy, "balanced") as session, pytest.warns(RuntimeWarning, match="8 or more"):
        sample_dit(pipe, steps=5, guidance_scale=1.5)
    assert session.stats.nfc == 5


@pytest.mark.parametrize("steps", range(4, 11))
@pytest.mark.parametrize("follower", [None, "second"])
def test_the_first_schedule_has_all_that_it_may_compute(steps: int, follower: str | None) -> None:
    for doubled in range(4, 2 * steps):
        budget = doubled / 2 if follower else doubled // 2
        mask = usual_schedule(budget, RunShape(steps, follower)).mask  # type: ignore[arg-type]
        assert len(mask) == steps and computations(mask) <= budget
        assert computations(mask) > budget - 1
