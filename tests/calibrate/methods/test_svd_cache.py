"""Principal subspaces: ranks by energy, orthonormal bases, and the policies made from them."""

import numpy as np
import pytest
import torch
from tests.calibrate.methods.small import PAIR
from tests.tiny import sample_dit

from cachesmith.calibrate.fit.subspace import bases, rank, second_moment, spectrum
from cachesmith.calibrate.methods import METHODS
from cachesmith.policies import Ema, Forecaster, PolicyError, Profile, Taylor, unbound
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer

STEPS = 12


def outputs() -> torch.Tensor:
    return torch.randn(STEPS, 2, 5, 6, generator=torch.Generator().manual_seed(0))


def test_the_spectrum_is_that_of_the_features() -> None:
    features = outputs()
    found = spectrum(second_moment(features, 0))
    expected = torch.linalg.svdvals(features.double().flatten(0, -2)).square()
    torch.testing.assert_close(found.energies, expected)
    moved = spectrum(second_moment(features, 3)).energies.sum()
    torch.testing.assert_close(moved, (features[3:] - features[:-3]).double().square().sum())


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 1), (0.6, 2), (0.9, 3), (1.0, 3)])
def test_rank_holds_the_energy(tau: float, expected: int) -> None:
    assert rank(torch.tensor([5.0, 3.0, 2.0, 0.0]).double(), tau) == expected


def test_bases_are_orthonormal_and_hold_what_they_should() -> None:
    moments = {"a": second_moment(outputs(), 0), "b": torch.diag(torch.tensor([9.0, 1, 0, 0, 0, 0]).double())}
    basis = bases(moments, 0.85)
    product = basis.transpose(1, 2) @ basis
    torch.testing.assert_close(product, torch.eye(basis.shape[2]).expand_as(product), atol=1e-5, rtol=0)
    kept = torch.einsum("ck,cd,dk->", basis[0].double(), moments["a"], basis[0].double())
    assert kept / moments["a"].trace() >= 0.85


def test_wrong_values_are_refused(renderer: Renderer) -> None:
    with pytest.raises(PolicyError, match="energy is 0"):
        rank(torch.ones(3), 0.0)
    with pytest.raises(PolicyError, match="distance is 12; give 0 to 11"):
        second_moment(outputs(), 12)
    with pytest.raises(PolicyError, match="there is no solver 'x'"):
        METHODS["svd-cache"](renderer, PAIR, row="x")
    with pytest.raises(PolicyError, match="method svd-cache is not valid: beta = 1"):
        METHODS["svd-cache"](renderer, PAIR, beta=1.0)


@pytest.mark.parametrize("units", ["stack", "segment", "module"])
def test_all_energy_is_no_subspace(renderer: Renderer, units: str) -> None:
    whole = METHODS["svd-cache"](renderer, PAIR, row="taylor-1", energy=1.0, interval=3, units=units)
    profile = whole.profile()
    plain = Profile(units=profile.units, gate=profile.gate, forecaster=Forecaster(rows=Taylor(order=1)))
    pictures = []
    for policy in (whole, unbound(plain)):
        with apply(renderer.pipe, policy):
            pictures.append(renderer(PAIR).images)
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=1e-4)


def test_the_printed_method_runs_and_ignores_the_rest_of_the_batch(renderer: Renderer) -> None:
    policy = METHODS["svd-cache"](renderer, PAIR, interval=3)
    assert policy.profile().forecaster.rows == Ema(beta=0.9)
    with apply(renderer.pipe, policy) as session:
        alone = sample_dit(renderer.pipe, labels=(1,))
        batch = sample_dit(renderer.pipe, labels=(1, 2, 3))
    np.testing.assert_allclose(batch[:1], alone, atol=1e-5)
    assert not session.stats.fallbacks
