"""A floor of quality: the fewest computations that hold it, or a refusal that says what to change."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.calibrate.small import settings

from cachesmith.calibrate import spaces
from cachesmith.calibrate.spaces import Found, none_worse_than_cheaper
from cachesmith.policies import PolicyError, preset


class Maker:
    """Holds 3 dB a computation, in every sample."""

    shape = SimpleNamespace(starts=(0,))

    def unsearched(self, budget: int) -> torch.Tensor:
        return torch.full((8,), 3.0 * budget)


@pytest.mark.parametrize(("wanted", "expected"), [(9.0, 3), (9.1, 4), (17.9, 6), (3.0, 1 + 1)])
def test_the_fewest_computations_that_hold_it(tmp_path: Any, wanted: float, expected: int) -> None:
    maker: Any = Maker()
    assert spaces._fastest(maker, settings(tmp_path, min_psnr=wanted)) == expected


def test_what_no_policy_holds_is_refused(tmp_path: Any) -> None:
    maker: Any = Maker()
    with pytest.raises(PolicyError, match="ask for less with --min-psnr"):
        spaces._fastest(maker, settings(tmp_path, min_psnr=18.1))


def test_a_dearer_profile_is_never_worse_than_a_cheaper_one() -> None:
    policies = [preset(name) for name in ("fora", "taylorseer", "hicache")]
    found = {
        name: Found(policy, f"source {name}", nfc, psnr)
        for (name, nfc, psnr), policy in zip(
            [("quality", 14, 49.0), ("fast", 7, 50.0), ("balanced", 10, 52.0)], policies, strict=True
        )
    }
    kept = none_worse_than_cheaper(found)
    assert kept["fast"] is found["fast"] and kept["balanced"] is found["balanced"]
    assert kept["quality"].policy is found["balanced"].policy
    assert kept["quality"].source == "source balanced; as balanced, since 14 computations did no better"
