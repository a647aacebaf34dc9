"""An earlier policy may be started from unless it may have been fitted on what is held out now."""

from typing import Any

import pytest
from tests.calibrate.small import LABELS, recorded

from cachesmith.calibrate.warm_start import check_earlier, origin
from cachesmith.policies import PolicyError, preset
from cachesmith.sampling.requests import split

PROMPTS: list[Any] = [f"prompt {i}" for i in range(30)]


def test_the_same_split_may_be_used_again() -> None:
    parts = split(PROMPTS, 8, 4, 6, 0)
    check_earlier(recorded(parts), PROMPTS, parts)
    check_earlier(recorded(parts), PROMPTS, split(PROMPTS, 8, 4, 6, 3))


@pytest.mark.parametrize("sizes", [(8, 4, 12), (24, 4, 6), (8, 40, 6)])
def test_another_split_is_refused(sizes: tuple[int, int, int]) -> None:
    earlier = recorded(split(PROMPTS, 8, 4, 6, 0))
    with pytest.raises(PolicyError, match="use its prompts file, --fitting and --heldout"):
        check_earlier(earlier, PROMPTS, split(PROMPTS, *sizes, 0))


def test_other_prompts_are_refused() -> None:
    earlier = recorded(split(PROMPTS, 8, 4, 6, 0))
    others = [*PROMPTS[1:], "one more"]
    with pytest.raises(PolicyError, match="held out other prompts"):
        check_earlier(earlier, others, split(others, 8, 4, 6, 0))


def test_shared_prompts_may_be_split_anew_but_not_with_fitted_seeds() -> None:
    parts = split(LABELS, 8, 4, 6, 0)
    check_earlier(recorded(parts), LABELS, split(LABELS, 4, 4, 12, 0))
    with pytest.raises(PolicyError, match="fitted on seeds that are held out now; change --seed"):
        check_earlier(recorded(split(LABELS, 200_002, 4, 6, 0)), LABELS, parts)


def test_a_policy_without_a_record_is_allowed() -> None:
    check_earlier(preset("fora"), PROMPTS, split(PROMPTS, 8, 4, 6, 0))


def test_the_record_names_the_earlier_policy() -> None:
    earlier = preset("fora")
    assert origin(earlier) == (f"earlier policy: {earlier.id}",) and origin(None) == ()
