"""Fitters of methods whose schedule is settled beforehand: what they promise, on hand-made and on real trajectories."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.calibrate.methods.small import REQUESTS
from tests.calibrate.trajectory import trajectories
from tests.runtime.units import module_unit
from tests.tiny import sample_flux, tiny_flux
from torch import Tensor

from cachesmith.calibrate.methods import METHODS, dpcache, eoc, magcache, scalingcache, smoothcache
from cachesmith.calibrate.methods.schedule_recorder import ScheduleRecorder
from cachesmith.policies import (
    Fitted,
    Fixed,
    Modules,
    Observed,
    PolicyError,
    Reuse,
    Stack,
    Taylor,
    preset,
    unbound,
)
from cachesmith.policies.schedule import interval_mask
from cachesmith.runtime import Tick, UnitResult, apply, watch
from cachesmith.sampling.render import Renderer

STEPS = 10
UNIT = module_unit(streams=("x",))


def gate_of(policy: Any) -> Fixed:
    gate = policy.profile().gate
    assert isinstance(gate, Fixed)
    return gate


BRIEF: dict[str, Any] = {"budcache": {"annealing": 3, "climbing": 0}, "golden-path": {"evaluations": 3}}
"""Options of methods that sample over and over."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_policy_that_runs(renderer: Renderer, name: str) -> None:
    policy = METHODS[name](renderer, REQUESTS, budget=5, **BRIEF.get(name, {}))
    assert policy.document.model is None and policy.document.sampler is None
    with apply(renderer.pipe, policy) as session:
        pictures = renderer(REQUESTS)
    assert pictures.images.isfinite().all() and not session.stats.fallbacks
    assert 2 <= session.stats.nfc <= 5 + 1e-9


def test_magcache_ratios_are_means_over_samples_and_tokens(renderer: Renderer) -> None:
    residuals = trajectories(renderer, REQUESTS, Stack())["stack"]
    norms = residuals.norm(dim=-1)
    expected = [1.0, *(float((after / before).mean()) for before, after in pairwise(norms))]
    assert magcache.measure_ratios(renderer, REQUESTS) == pytest.approx(expected, rel=1e-4)


def test_smoothcache_errors_are_means_over_samples_and_depth(renderer: Renderer) -> None:
    changes = smoothcache.StepChanges(STEPS, 3)
    with watch(renderer.pipe, Modules(), ScheduleRecorder(changes.note, taps=3)):
        renderer(REQUESTS)
    lanes = trajectories(renderer, REQUESTS, Modules())
    for group, table in changes.means().items():
        of_group = [outputs for name, outputs in lanes.items() if name.startswith(f"{group}.")]
        for k, step in [(1, 0), (2, 3), (3, 6)]:
            errors = [
                (o[step + k] - o[step]).abs().flatten(1).sum(1) / o[step + k].abs().flatten(1).sum(1)
                for o in of_group
            ]
            assert float(table[k - 1, step]) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
        assert table[0, STEPS - 1].isinf() and table[2, STEPS - 3].isinf()


def test_outputs_are_kept_as_they_are_and_shown_in_float32() -> None:
    seen: list[tuple[int, list[Tensor]]] = []
    recorder = ScheduleRecorder(
        lambda _, lane, step, past, output: seen.append((step, [*(o for _, o in past), output])), taps=2
    )
    outputs = [torch.full((1, 4, 2), 1 + step / 128, dtype=torch.bfloat16) for step in range(3)]
    for step, output in enumerate(outputs):
        recorder.begin(Tick(0, step, "0"))
        recorder.observe(UnitResult(UNIT, (output,), (output,)))
    (kept,) = recorder._past.values()
    assert [(step, output.dtype) for step, output in kept] == [(2, torch.bfloat16), (1, torch.bfloat16)]
    step, shown = seen[-1]
    assert step == 2 and all(each.dtype == torch.float32 for each in shown)
    assert [float(each[0, 0, 0]) for each in shown] == [1 + 1 / 128, 1.0, 1 + 2 / 128]


def published_scan(errors: Tensor, alpha: float) -> str:
    """The released calibration's scan: rows of errors without the steps that have no successor."""
    steps = errors.shape[1]
    rows = [row[: steps - k].tolist() for k, row in enumerate(errors, start=1)]
    active: list[Any] = [None] * steps
    i = 0
    while i < steps:
        for k in range(len(rows), 0, -1):
            if i < len(rows[k - 1]) and rows[k - 1][i] <= alpha:
                active[i] = 1
                for skipped in range(i + 1, min(i + k + 1, steps)):
                    active[skipped] = 0
                i += k + 1
                break
        else:
            active[i] = 1
            i += 1
    active[0] = active[-1] = 1
    return "".join("C" if a else "F" for a in active)


@pytest.mark.parametrize("seed", range(20))
def test_smoothcache_mask_is_the_published_scan(seed: int) -> None:
    errors = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for alpha in (0.0, 0.2, 0.5, 1.0):
        assert smoothcache.smoothcache_mask(errors, alpha) == published_scan(errors, alpha)


def test_smoothcache_gives_every_kind_its_schedule(renderer: Renderer) -> None:
    gate = gate_of(smoothcache.fit_smoothcache(renderer, REQUESTS, alpha=0.1))
    assert set(gate.groups) == {"attn", "mlp"}
    assert gate_of(smoothcache.fit_smoothcache(renderer, REQUESTS, alpha=0.0)).groups == dict.fromkeys(
        gate.groups, "C" * STEPS
    )
    with pytest.raises(PolicyError, match="the budget is 2"):
        smoothcache.fit_smoothcache(renderer, REQUESTS, budget=2, lookahead=1)


def line(step: int, past: list[int]) -> list[tuple[int, Tensor]]:
    base, slope = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [(s, base + s * slope) for s in (step, *past)]


def test_scaling_factors_are_one_on_a_line() -> None:
    factors = scalingcache.Factors("CCFFCFFF", 1)
    for step, past in {2: [1, 0], 3: [1, 0], 5: [4, 1], 6: [4, 1], 7: [4, 1]}.items():
        (_, output), *known = line(step, past)
        factors.note(UNIT, 0, step, known, output)
    assert factors.alphas()[0].tolist() == pytest.approx([0, 0, 1, 1, 0, 1, 1, 1])
    assert factors.weights()[0, 6].tolist() == pytest.approx([1 + 2 / 3, -2 / 3])
    torch.testing.assert_close(factors.weights().sum(2), torch.ones(1, 8, dtype=torch.float64))


def test_scaling_factors_are_least_squares(renderer: Renderer) -> None:
    policy = scalingcache.fit_scalingcache(renderer, REQUESTS, mask="CCFFCFFFCF", units=Stack())
    features = trajectories(renderer, REQUESTS, Stack())["stack"].double()
    weights = policy.arrays[scalingcache.WEIGHTS]
    for step, (new, old) in {3: (1, 0), 7: (4, 1), 9: (8, 4)}.items():
        moved = (features[new] - features[old]).flatten()
        best = np.linalg.lstsq(moved[:, None].numpy(), (features[step] - features[new]).flatten(), rcond=None)
        assert float(-weights[0, step, 1]) == pytest.approx(float(best[0][0]), rel=1e-3)
    assert isinstance(policy.profile().forecaster.rows, Fitted)
    with pytest.raises(PolicyError, match="the mask has 3 letters for 10 steps"):
        scalingcache.fit_scalingcache(renderer, REQUESTS, mask="CFF")


@pytest.mark.parametrize(
    "base",
    [
        None,
        preset("taylorseer", interval=3),
        preset("freqca", interval=3, cutoff=0.3),
        METHODS["scalingcache"],
    ],
)
def test_eoc_leaves_no_mean_error(renderer: Renderer, base: Any) -> None:
    if callable(base):
        base = base(renderer, REQUESTS, interval=3)
    policy = eoc.fit_eoc(renderer, REQUESTS, base=base, interval=3)
    offsets = policy.arrays[eoc.OFFSETS]
    teacher = eoc.Teacher(renderer, policy)
    with watch(renderer.pipe, policy.profile().units, teacher):
        renderer(REQUESTS)
    left = teacher.offsets(0.0)
    assert float(np.abs(offsets).max()) > 1e-3
    assert float(left.abs().max()) < 1e-5 * float(np.abs(offsets).max())


def test_eoc_corrects_forecast_steps_only(renderer: Renderer) -> None:
    policy = eoc.fit_eoc(renderer, REQUESTS, budget=4)
    moved = np.abs(policy.arrays[eoc.OFFSETS]).sum((0, 2)) > 0
    assert "".join("F" if m else "C" for m in moved) == gate_of(policy).mask
    assert policy.profile().forecaster.rows == Reuse()
    assert not eoc.fit_eoc(renderer, REQUESTS, budget=4, threshold=1e6).arrays[eoc.OFFSETS].any()


def test_eoc_with_a_scale_that_is_observed(renderer: Renderer) -> None:
    base = preset("taylorseer", interval=3)
    profile = base.profile()
    rfe = profile.forecaster.model_copy(update={"magnitude": Observed()})
    policy = eoc.fit_eoc(renderer, REQUESTS, base=unbound(profile.model_copy(update={"forecaster": rfe})))
    assert policy.profile().forecaster.magnitude == Observed()


def test_eoc_needs_a_schedule(renderer: Renderer) -> None:
    with pytest.raises(PolicyError, match="decides while sampling"):
        eoc.fit_eoc(renderer, REQUESTS, base=preset("rfc"))


def test_eoc_of_several_streams() -> None:
    pipe = tiny_flux()

    class Flux(Renderer):
        def __call__(self, requests: Any, advance: Any = None) -> Any:
            return sample_flux(self.pipe, steps=STEPS)

    policy = eoc.fit_eoc(Flux(pipe, STEPS), REQUESTS, interval=3)
    with apply(pipe, policy) as session:
        sample_flux(pipe, steps=STEPS)
    assert session.plan is not None and not session.stats.fallbacks
    assert (
        len(policy.arrays[eoc.OFFSETS])
        == sum(len(u.streams) for u in session.plan.units)
        > len(session.plan.units)
    )


def test_dpcache_plans_for_its_own_forecast(renderer: Renderer) -> None:
    policy = dpcache.fit_dpcache(renderer, REQUESTS, budget=5)
    mask = gate_of(policy).mask
    assert mask.startswith("CCC") and mask.count("C") == 5
    assert policy.profile().forecaster.rows == Taylor(order=2)
    for wrong in ({"budget": 2}, {"budget": 11}, {"order": 3}):
        with pytest.raises(PolicyError, match=r"budget|order"):
            dpcache.fit_dpcache(renderer, REQUESTS, **wrong)


def test_schedules() -> None:
    assert interval_mask(10, 4, None, 2) == "CCFFFCFFFC"
    assert [interval_mask(10, 5, n).count("C") for n in range(1, 11)] == list(range(1, 11))
    with pytest.raises(PolicyError, match="give a number from 1 to 10"):
        interval_mask(10, 5, 11)
