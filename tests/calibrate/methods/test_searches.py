"""Searches over schedules: on made-up losses with a known best, and on real runs."""

import random
from itertools import combinations

import pytest
import torch
from tests.calibrate.methods.small import REQUESTS
from torch import Tensor

from cachesmith.calibrate.methods.searches import budcache, golden_path, reuse
from cachesmith.calibrate.methods.searches.moves import (
    ComputedSteps,
    Losses,
    ScheduleSpace,
    SpentError,
    anneal,
    climb,
)
from cachesmith.calibrate.methods.searches.reuse import ScheduleSampler, reusing
from cachesmith.policies import Fixed, Forecaster, Policy, PolicyError, Profile, Stack, Taylor, unbound
from cachesmith.policies.schedule import computed_steps
from cachesmith.runtime import UnitResult, apply
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer

STEPS = 9
SPACE = ScheduleSpace(20, 6, frozenset({0, 1, 19}))
BEST: ComputedSteps = (0, 1, 4, 8, 13, 19)


def far(computed: ComputedSteps) -> float:
    """How far a schedule is from `BEST`."""
    return float(sum(abs(a - b) for a, b in zip(computed, BEST, strict=True)))


@pytest.mark.parametrize("seed", range(5))
def test_moves_stay_in_the_space(seed: int) -> None:
    rng = random.Random(seed)
    current = SPACE.drawn(rng)
    for _ in range(200):
        found = SPACE.moved(current, rng)
        assert len(set(found)) == SPACE.budget and SPACE.forced <= set(found) <= set(range(20))
        assert 1 <= len(set(found) - set(current)) <= 2 and list(found) == sorted(found)
        current = found
    near = list(SPACE.neighbours(current, rng))
    assert len(near) == len(set(near)) and all(len(set(n) - set(current)) == 1 for n in near)


@pytest.mark.parametrize("seed", range(5))
def test_climbing_finds_the_best(seed: int) -> None:
    rng, loss = random.Random(seed), Losses(far)
    start = anneal(SPACE, SPACE.drawn(rng), loss, 50, 3.0, 0.01, rng)
    assert climb(SPACE, start, loss, 20, rng) == BEST


def test_a_schedule_is_evaluated_once_and_no_more_than_allowed() -> None:
    asked: list[ComputedSteps] = []
    loss = Losses(lambda steps: asked.append(steps) or 0.0, most=1)  # type: ignore[func-returns-value]
    assert loss(BEST) == loss(BEST) == 0.0 and asked == [BEST]
    with pytest.raises(SpentError):
        loss((0, 1, 2, 3, 4, 19))


@pytest.mark.parametrize("line", [False, True])
def test_the_sampler_draws_what_the_policy_does(renderer: Renderer, line: bool) -> None:
    sample = ScheduleSampler(renderer, REQUESTS, line)
    for computed in ((0, 1, 4, 7), (0, 1, 5, 7), (0, 1, 4, 7)):
        policy = reusing(computed, STEPS)
        if line:
            gate = policy.profile().gate
            assert isinstance(gate, Fixed)
            rows = Taylor(order=1)
            policy = unbound(Profile(units=Stack(), gate=gate, forecaster=Forecaster(rows=rows)))
        with apply(renderer.pipe, policy):
            expected = renderer(REQUESTS).latents
        torch.testing.assert_close(sample(computed).latents, expected, rtol=1e-5, atol=1e-5)


def test_a_common_beginning_is_computed_once(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_KEPT", 3)
    computed: list[int] = []
    observe = ScheduleSampler.observe

    def noted(self: ScheduleSampler, result: UnitResult) -> None:
        computed.append(1)
        observe(self, result)

    monkeypatch.setattr(ScheduleSampler, "observe", noted)
    sample = ScheduleSampler(renderer, REQUESTS[:1])
    counts = []
    for steps in ((0, 1, 4, 7), (0, 1, 4, 8), (0, 1, 5, 8), (0, 1, 4, 8)):
        computed.clear()
        sample(steps)
        counts.append(len(computed))
    assert counts == [4, 1, 2, 0]
    for last in range(2, STEPS):  # of which fewer are remembered than were computed
        sample((0, 1, last))
        sample((0, last))
    computed.clear()
    sample((0, 4, 8))
    assert len(computed) == 2


def reached(renderer: Renderer, computed: ComputedSteps, uncached: Tensor) -> float:
    return float(psnr(uncached, ScheduleSampler(renderer, REQUESTS)(computed).images).mean())


def mask_of(policy: Policy) -> ComputedSteps:
    gate = policy.profile().gate
    assert isinstance(gate, Fixed)
    return tuple(computed_steps(gate.mask))


def test_the_golden_path_is_the_best_of_its_space(renderer: Renderer) -> None:
    """Of six schedules, all of which the search comes by."""
    uncached = renderer(REQUESTS).images
    space = [(0, 1, 2, step, STEPS - 1) for step in range(3, STEPS - 1)]
    best = max(space, key=lambda computed: reached(renderer, computed, uncached))
    found = golden_path.fit_golden_path(renderer, REQUESTS, budget=5, evaluations=len(space))
    assert mask_of(found) == best


def test_budcache_is_the_best_of_its_space_for_one_sample(renderer: Renderer) -> None:
    uncached = renderer(REQUESTS[:1]).latents
    sample = ScheduleSampler(renderer, REQUESTS[:1])
    space = [(0, *others) for others in combinations(range(1, STEPS), 1)]
    best = min(space, key=lambda c: float((sample(c).latents - uncached).square().mean()))
    assert mask_of(budcache.fit_budcache(renderer, REQUESTS, budget=2, annealing=60, climbing=2)) == best


def test_budgets_that_leave_nothing_to_choose_are_refused(renderer: Renderer) -> None:
    with pytest.raises(PolicyError, match="4 of 9 steps forced; give one from 5 to 8"):
        golden_path.fit_golden_path(renderer, REQUESTS, budget=4)
    with pytest.raises(PolicyError, match="give one from 3 to 8"):
        budcache.fit_budcache(renderer, REQUESTS, budget=9)
    with pytest.raises(PolicyError, match="at least 0"):
        budcache.fit_budcache(renderer, REQUESTS, budget=3, annealing=-1)
    with pytest.raises(PolicyError, match="at least 1"):
        golden_path.fit_golden_path(renderer, REQUESTS, budget=5, evaluations=0)
