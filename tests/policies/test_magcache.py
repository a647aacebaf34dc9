"""MagCache's mask is its published decision loop, and a budget is kept with the smallest threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesmith.calibrate.methods.threshold import threshold_within
from cachesmith.policies import PolicyError, magcache_mask, resample_ratios

FLUX = (
    *(1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047),
    *(1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484),
    *(0.95703, 0.93359, 0.89062),
)
"""Published for FLUX.1-dev with 28 steps."""

ratios = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40)


class Published:
    """The forward pass of the released code, reduced to its decision and one call a step."""

    def __init__(self, ratios: list[float], threshold: float, max_skips: int, retention: float):
        self.cnt, self.num_steps, self.mag_ratios = 0, len(ratios), np.array(ratios)
        self.magcache_thresh, self.K, self.retention_ratio = threshold, max_skips, retention
        self.accumulated_ratio, self.accumulated_err, self.accumulated_steps = 1.0, 0.0, 0

    def skips(self) -> bool:
        skip_forward = False
        if self.cnt >= int(self.retention_ratio * self.num_steps + 0.5):
            self.accumulated_ratio = self.accumulated_ratio * self.mag_ratios[self.cnt]
            self.accumulated_steps += 1
            self.accumulated_err += np.abs(1 - self.accumulated_ratio)
            if self.accumulated_err <= self.magcache_thresh and self.accumulated_steps <= self.K:
                skip_forward = True
            else:
                self.accumulated_ratio, self.accumulated_steps, self.accumulated_err = 1.0, 0, 0.0
        self.cnt += 1
        return skip_forward


@given(ratios, st.floats(0, 1), st.integers(0, 8), st.floats(0.1, 1))
def test_the_mask_is_the_published_loop(
    values: list[float], threshold: float, max_skips: int, retention: float
) -> None:
    loop = Published(values, threshold, max_skips, retention)
    letters = "".join("F" if loop.skips() else "C" for _ in values)
    # the released code would skip a first step it has no residual for
    assert magcache_mask(values, threshold, max_skips, retention) == "C" + letters[1:] or letters[0] == "F"


def test_a_mask_by_hand() -> None:
    # errors 0.1, then 0.1 + 0.21 above 0.3; a protected step; at most two in a row
    assert magcache_mask([1, 1, 1.1, 1.1, 1, 1, 1, 1, 1], 0.3, 2, 0.2) == "CCFCFFCFF"
    assert magcache_mask([1, 1, 1.1, 1.1, 1, 1, 1, 1, 1], 0.3, 2, 0.2, protected=[5]) == "CCFCFCFFC"
    assert magcache_mask([1.0] * 4, retention=0.0) == "CFFF"


def test_flux_at_its_published_settings() -> None:
    mask = magcache_mask(FLUX, protected=[11])
    assert len(mask) == 28 and mask[11] == "C" and mask.startswith("CCC") and 8 <= mask.count("C") <= 14


@pytest.mark.parametrize("wrong", [[], [1.0, -0.5], [1.0, float("nan")], [1.0, float("inf")], [1.0, 0.0]])
def test_ratios_must_be_positive(wrong: list[float]) -> None:
    with pytest.raises(PolicyError, match="ratios must be positive"):
        magcache_mask(wrong)


@given(ratios, st.integers(1, 60))
def test_resampling_takes_the_nearest(values: list[float], steps: int) -> None:
    scale = (len(values) - 1) / (steps - 1) if steps > 1 else 0
    index = np.round(np.arange(steps) * scale).astype(int) if steps > 1 else np.array([len(values) - 1])
    assert resample_ratios(values, steps) == tuple(np.array(values)[index].tolist())
    assert resample_ratios(values, len(values)) == tuple(values)


@given(ratios, st.integers(1, 40))
def test_the_smallest_threshold_within_a_budget(values: list[float], budget: int) -> None:
    def computed(threshold: float) -> int:
        return magcache_mask(values, threshold, max_skips=5, retention=0.0).count("C")

    if computed(1e9) > budget:
        with pytest.raises(PolicyError, match="the budget is"):
            threshold_within(computed, budget)
        return
    found = threshold_within(computed, budget)
    assert computed(found) <= budget
    assert found < 1e-6 or computed(found * (1 - 1e-5)) > budget


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9), st.integers(0, 9))
def test_a_threshold_between_given_errors(errors: list[float], budget: int) -> None:
    found = threshold_within(lambda t: sum(error > t for error in errors), budget)
    expected = sorted(errors, reverse=True)[budget] if budget < len(errors) else 0.0
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
