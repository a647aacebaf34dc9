"""Golden Path Hypothesis (arXiv 2609.39343): one shared schedule for plain reuse, chosen by the quality of pictures.

Source: sections on schedule search, and `resources/schedule_search/config.v1.json` of nanguoyu/Golden-Path-Hypothesis.
Steps 0, 1, 2 and the last are computed. Chains of annealing and hill climbing start at random schedules, with
temperatures from what a move typically changes; the loss is the negative mean PSNR of eight requests. The best three
schedules that differ in four steps or more are then judged on requests that the search has not seen.
"""

import random
from collections.abc import Sequence

from torch import Tensor

from cachesmith.calibrate.methods.searches.moves import (
    ComputedSteps,
    Losses,
    ScheduleSpace,
    SpentError,
    anneal,
    climb,
    typical_difference,
)
from cachesmith.calibrate.methods.searches.reuse import ScheduleSampler, reusing
from cachesmith.policies import Policy, PolicyError
from cachesmith.progress import Advance, stage
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

SEARCHED = 8
"""Requests that the search samples; those after them arbitrate."""

_PROBES = 25
"""Random moves that temperatures are taken from: each is two evaluations."""

CHAIN, ROUNDS = 200, 20
"""Iterations of annealing and most rounds of hill climbing in a chain."""

HOT, COLD = 10.0, 0.01
"""First and last temperature, in typical differences."""

IDLE = 2
"""Chains in a row without a better schedule, by two standard errors, after which the search ends."""

FINALISTS, APART = 3, 4
"""Schedules that are judged in the end, and the steps in which they differ at least."""


def fit_golden_path(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: int = 10,
    evaluations: int = 400,
    seed: int = 0,
) -> Policy:
    """Search on the first eight of `requests`, arbitrate on the others, and return plain reuse of the whole stack.

    evaluations: most schedules that are sampled in the search; the authors allow 400 at 9 computed steps of 50, 700 at
    13 and 1,400 at 21. Raises `PolicyError` for a budget that leaves nothing to choose.
    """
    space = ScheduleSpace(renderer.steps, budget, frozenset({0, 1, 2, renderer.steps - 1}))
    space.check()
    if evaluations < 1:
        raise PolicyError(f"evaluations is {evaluations}; give at least 1")
    with stage("schedules", evaluations) as advance:
        judge = _Judge(renderer, requests[:SEARCHED], advance)
        finalists = _finalists(_search(space, judge, evaluations, random.Random(seed)))
    if others := requests[SEARCHED:]:
        arbiter = _Judge(renderer, others)
        finalists.sort(key=lambda computed: -float(arbiter(computed).mean()))
    return reusing(finalists[0], renderer.steps)


class _Judge:
    """PSNR of every request [N] under a schedule, in dB; what was asked before is remembered."""

    def __init__(self, renderer: Renderer, requests: Sequence[Request], advance: Advance | None = None):
        self._sample, self._advance = ScheduleSampler(renderer, requests), advance
        self._uncached = renderer(requests).images
        self._known: dict[ComputedSteps, Tensor] = {}

    def __call__(self, computed: ComputedSteps) -> Tensor:
        if computed not in self._known:
            self._known[computed] = psnr(self._uncached, self._sample(computed).images)
            if self._advance is not None:
                self._advance()
        return self._known[computed]


def _search(
    space: ScheduleSpace, judge: _Judge, evaluations: int, rng: random.Random
) -> dict[ComputedSteps, float]:
    """Return the loss of every schedule that was tried, in dB."""
    loss = Losses(lambda computed: -float(judge(computed).mean()), evaluations)
    try:
        typical = typical_difference(space, loss, _PROBES, rng) or 1e-6
        idle, best = 0, loss.best()
        while idle < IDLE:
            found = anneal(space, space.drawn(rng), loss, CHAIN, HOT * typical, COLD * typical, rng)
            climb(space, found, loss, ROUNDS, rng)
            found = loss.best()
            idle = 0 if _gains(judge(found) - judge(best)) else idle + 1
            best = found
    except SpentError:
        pass
    return loss.known


def _gains(difference: Tensor) -> bool:
    """Whether a paired difference is above its two standard errors."""
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()) > 2 * error


def _finalists(losses: dict[ComputedSteps, float]) -> list[ComputedSteps]:
    """The best schedules, each of which differs from those before in enough steps."""
    chosen: list[ComputedSteps] = []
    for computed in sorted(losses, key=losses.__getitem__):
        # of a set and another of its size, so many steps are in one of them only
        if all(len({*computed} ^ {*other}) >= APART for other in chosen):
            chosen.append(computed)
        if len(chosen) == FINALISTS:
            break
    return chosen
