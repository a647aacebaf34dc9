"""The fastest profile that holds a quality: chosen on the validation requests, and honest about the held-out ones."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cachesmith.calibrate.candidates import fastest, warn_if_short
from cachesmith.policies import Fixed, PolicyError, Profile, Quality


class Makers:
    """The policy of a budget is the budget, and its validation PSNR a constant plus ten times it."""

    config = SimpleNamespace(seed=0)

    def choose(self, budget: float) -> Any:
        return SimpleNamespace(policy=budget)

    def validation(self, policy: float) -> Any:
        return SimpleNamespace(samples=torch.tensor([10.0 * policy] * 4))


@pytest.mark.parametrize(("psnr", "budget"), [(5.0, 2), (41.0, 4.5), (50.0, 5), (51.0, 5.5), (100.0, 10)])
def test_the_smallest_budget_is_found_on_the_validation_requests(psnr: float, budget: float) -> None:
    makers: Any = Makers()
    assert fastest(makers, psnr, 20).policy == budget


def test_what_no_budget_holds_is_refused() -> None:
    makers: Any = Makers()
    with pytest.raises(PolicyError, match="ask for less with --min-psnr"):
        fastest(makers, 101.0, 20)


def profile(low: float) -> Profile:
    quality = Quality(samples=2, psnr=low + 1, psnr_low=low, psnr_high=low + 2, ssim=1.0, latent_error=0.0)
    return Profile(gate=Fixed(mask="CF"), quality=quality)


def test_held_out_samples_that_miss_the_quality_are_told() -> None:
    with pytest.warns(RuntimeWarning, match=r"--min-psnr 30 has 29.00 to 31.00 dB on held-out samples"):
        warn_if_short(profile(29.0), 30.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_short(profile(30.0), 30.0)
