"""What schedules are compared by is chosen by name, and is what decides."""

from pathlib import Path

import pytest
import torch
from tests.calibrate.closed_loop.world import Flux, shards
from tests.calibrate.small import run

from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.objective import Objective
from cachesmith.policies import PolicyError
from cachesmith.sampling.metrics import METRICS, Metric, relative_error
from cachesmith.sampling.pictures import Pictures


def test_the_metric_decides_which_schedule_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that rewards distance from the uncached latents prefers another schedule, on the same references."""
    far = Metric("far", "distance", ".2f", "higher", relative_error, of="latents")
    monkeypatch.setitem(METRICS, "far", far)
    chosen = {}
    for objective in ("latent_error", "far"):
        policy = run(tmp_path, steps=8, speedups=(2.0,), budget=10.0, objective=objective)
        chosen[objective] = policy.profile().gate
        record = policy.document.calibration
        assert record is not None and f"objective: {objective}" in record.fitted
    assert chosen["latent_error"] != chosen["far"]


def test_errors_count_negative() -> None:
    torch.manual_seed(0)
    reference = Pictures(torch.rand(3, 1, 16, 16), torch.randn(3, 4))
    candidate = Pictures((reference.images + 0.1).clamp(0, 1), reference.latents * 1.5)
    assert torch.allclose(Objective("latent_error").scores(reference, candidate), torch.tensor(-0.5).double())
    assert (Objective().scores(reference, candidate) > 10).all()


def test_latents_are_compared_where_the_sampler_ends() -> None:
    """Where everything is computed nothing is wrong, whatever the decoder is given."""
    samples = shards(Flux(), 1, 2)
    fit = SegmentFitter(samples, Schedule("C" * 10), (32,), objective=Objective("latent_error"))()
    assert (fit.scores.abs() < 1e-5).all() and (fit.samples == 100).all()


def test_a_metric_that_does_not_take_the_samples_is_refused() -> None:
    small = Pictures(torch.rand(1, 1, 8, 8), torch.randn(1, 4))
    for name, said in (
        ("ssim", "at least 11 x 11"),
        ("worst_frame", "takes video"),
        ("audio_error", "needs sound"),
    ):
        with pytest.raises(PolicyError, match=f"{said}.*; choose another --objective"):
            Objective(name).scores(small, small)
