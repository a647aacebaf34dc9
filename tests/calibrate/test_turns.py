"""What is called for at every step of a run, and in which parts a run is calibrated."""

from typing import Any

import pytest
import torch
from tests.pipelines import PIPELINES

from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, in_parts, line_weights, of_policy
from cachesmith.calibrate.probe import probe
from cachesmith.calibrate.turns import check_one_course, course_of
from cachesmith.policies import PolicyError
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


def renderer_of(name: str, **more: Any) -> tuple[Renderer, Any]:
    tiny = PIPELINES[name]
    return Renderer(tiny.pipe(), tiny.steps, 1), requests([tiny.request(0) | more], 1, 3)


@pytest.mark.parametrize(
    ("name", "starts", "uncached", "steady"),
    [
        ("Lumina2Pipeline (no guidance at the end)", (0,), (8 + 4) / 2, True),
        ("ZImagePipeline (no guidance at the end)", (0, 5), 8, False),
        ("AceStepPipeline (guidance in the middle)", (0, 5, 7), 8, False),
        ("StableDiffusion3Pipeline (a layer skipped)", (0, 1), (8 + 4) / 2, False),
        ("Ideogram4Pipeline", (0,), 8, True),
        ("QwenImageModularPipeline (no guidance at the end)", (0,), (8 + 4) / 2, True),
        pytest.param(
            "HunyuanVideo15Pipeline (no guidance at the start)",
            (0, 2),
            (8 + 6) / 2,
            False,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_parts_follow_guidance(name: str, starts: tuple[int, ...], uncached: float, steady: bool) -> None:
    """Weights of a schedule in these parts run where they were made for: nothing is computed that was not planned."""
    renderer, asked = renderer_of(name)
    course = course_of(renderer, asked)
    assert tuple(part.start for part in course.parts) == starts
    assert (course.calls, course.steady) == (uncached, steady)
    mask = "".join("C" if step in starts or step == 4 else "F" for step in range(8))
    schedule, channels = Schedule(mask, None, starts), probe(renderer, asked).channels
    rows = line_weights(schedule, sum(channels), torch.device("cpu"))
    with apply(
        renderer.pipe, as_policy(schedule, rows, "x", [part.denoisers for part in course.parts], channels)
    ) as session:
        renderer(asked)
    assert not session.stats.fallbacks and session.stats.nfc < uncached


def test_requests_that_are_guided_at_other_steps_are_refused() -> None:
    renderer, early = renderer_of("AceStepPipeline (guidance in the middle)")
    _, late = renderer_of("AceStepPipeline (guidance in the middle)", cfg_interval_start=0.1)
    check_one_course(renderer, early)
    with pytest.raises(
        PolicyError, match=r"begins with cfg_interval_start 0\.3, at step 1 and 6 and 8; with cfg"
    ):
        check_one_course(renderer, [*early, *late])


def test_an_earlier_policy_is_gone_on_from_in_the_same_parts() -> None:
    schedule = Schedule("CFFCFCFF", None, (0, 3))
    rows = line_weights(schedule, 4, torch.device("cpu"))
    known = of_policy(as_policy(schedule, rows, "x", (("transformer",),) * 2), "default")
    assert known is not None and known[0].starts == (0,)
    assert in_parts(*known, (0, 3)) == schedule and in_parts(*known, (0, 3, 5)) is None
    assert in_parts(*known, (0, 4)) is None
