"""TeaCache's polynomial, and thresholds for a wanted number of computations."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.methods import METHODS
from cachesmith.calibrate.methods.teacache import fit_polynomial
from cachesmith.calibrate.methods.threshold import threshold_for
from cachesmith.policies import Distance, Policy, PolicyError, preset
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_a_polynomial_is_recovered(degree: int) -> None:
    true = [498.65, -283.78, 55.855, -3.8202, 0.26423][-degree - 1 :]
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    y = sum(c * x.double() ** power for power, c in enumerate(reversed(true)))
    assert fit_polynomial(x, y, degree) == pytest.approx(true, rel=1e-6)  # type: ignore[arg-type]


def test_too_few_points() -> None:
    with pytest.raises(PolicyError, match="needs more than 4 different changes, got 1"):
        fit_polynomial(torch.ones(9), torch.ones(9), 4)


def test_fitted_on_a_model() -> None:
    pipe = tiny_dit()
    requests = [Request({"class_labels": label}, seed) for seed, label in enumerate((1, 2))]
    renderer = Renderer(pipe, 10)
    policy = METHODS["teacache"](renderer, requests, degree=2, budget=6)
    gate = policy.profile().gate
    assert isinstance(gate, Distance) and len(gate.polynomial) == 3
    with apply(pipe, policy) as session:
        renderer(requests)
    # on a run that computes everything, what adds up is the true change of the output, as least squares sees it
    assert session.stats.nfc == pytest.approx(6, abs=1)


def gated(nfc: Any) -> Any:
    """An evaluator whose number of computations follows from the threshold alone."""
    calls = []

    def evaluate(policy: Policy, count: int | None = None) -> Any:
        gate = policy.profile().gate
        assert isinstance(gate, Distance)
        calls.append(gate.threshold)
        return SimpleNamespace(nfc=nfc(gate.threshold))

    evaluate.calls = calls  # type: ignore[attr-defined]
    return evaluate


def make(threshold: float) -> Policy:
    return preset("teacache", threshold=threshold)


def test_thresholds_are_found() -> None:
    evaluator = gated(lambda t: 10 / t)
    assert 10 / threshold_for(8, make, evaluator, 0.01, 100) == pytest.approx(8, rel=1e-2)
    assert len(evaluator.calls) <= 12
    steps = gated(lambda t: round(10 / t))
    assert round(10 / threshold_for(8, make, steps, 0.01, 100)) == 8


def test_a_budget_out_of_reach_gives_the_nearest() -> None:
    assert threshold_for(1, make, gated(lambda t: max(5, 10 / t)), 0.1, 10, runs=8) > 1.9
    with pytest.raises(ValueError, match="0 < low < high"):
        threshold_for(8, make, gated(lambda t: t), 1.0, 0.1)
