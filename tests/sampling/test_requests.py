"""Splits of prompts: disjoint, none too small, each prompt once, and those of published policies as they were."""

from pathlib import Path
from typing import Any

import pytest
from tests.calibrate.small import recorded

from cachesmith.policies import load
from cachesmith.sampling.requests import Split, heldout_part, read_prompts, requests, requests_digest, split

FLUX = Path(__file__).parents[2] / "examples" / "fashion_flux"


def texts(parts: Split) -> list[set[str]]:
    return [{str(r.arguments) for r in part} for part in (parts.fitting, parts.validation, parts.heldout)]


@pytest.mark.parametrize("count", [15, 30, 100, 160, 1000])
def test_parts_have_prompts_of_their_own(count: int) -> None:
    parts = split([f"prompt {i}" for i in range(count)], 64, 32, 64, 0)
    own = texts(parts)
    assert not own[0] & own[1] and not own[0] & own[2] and not own[1] & own[2]
    assert [len(part) for part in (parts.fitting, parts.validation, parts.heldout)] == [64, 32, 64]
    assert min(map(len, own)) >= 3 and len(own[0]) >= min(64, count * 2 // 5)


def test_labels_recur_and_seeds_do_not() -> None:
    parts = split([{"class_labels": label} for label in range(10)], 20, 10, 30, 0)
    seeds = [r.seed for part in (parts.fitting, parts.validation, parts.heldout) for r in part]
    assert len(set(seeds)) == 60
    assert all(
        len({r.arguments["class_labels"] for r in part}) == 10 for part in (parts.fitting, parts.heldout)
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, 64, 64), [1, 9, 15]),
        ((4, 16, 64), [4, 6, 18]),
        ((64, 1, 1), [18, 1, 1]),
        ((320, 32, 64), [18, 6, 6]),
        ((2, 2, 2), [2, 2, 2]),
    ],
)
def test_no_part_gets_less_than_a_fifth_of_scarce_prompts(
    sizes: tuple[int, int, int], expected: list[int]
) -> None:
    """Counted in the samples, so a part of one sample shows one of its prompts."""
    assert [len(part) for part in texts(split([f"prompt {i}" for i in range(30)], *sizes, 0))] == expected


@pytest.mark.parametrize(
    "sizes", [(1, 64, 64), (4, 16, 64), (64, 1, 1), (64, 32, 64), (3, 9, 1), (1, 1, 200)]
)
@pytest.mark.parametrize("count", [14, 15, 16, 29, 30, 66, 129, 200])
def test_the_held_out_part_is_found_again(sizes: tuple[int, int, int], count: int) -> None:
    prompts: list[Any] = [f"prompt {i}" for i in range(count)]
    made = split(prompts, *sizes, 0)
    record = recorded(made).document.calibration
    assert requests(heldout_part(prompts, record), sizes[2], 200_000) == made.heldout


def test_a_prompt_listed_twice_is_in_one_part() -> None:
    prompts: list[Any] = [f"prompt {i}" for i in range(20)]
    again = [*prompts[:10], {"prompt": "prompt 3"}, *prompts[10:], *prompts]
    assert split(again, 40, 10, 10, 0) == split(prompts, 40, 10, 10, 0)
    few: list[Any] = [f"prompt {i}" for i in range(10)]
    assert split(few * 2, 4, 4, 20, 0) == split(few, 4, 4, 20, 0)


def test_the_published_policy_was_made_with_this_split() -> None:
    record = load(FLUX / "fashion-flux.policy.safetensors").document.calibration
    prompts = read_prompts(FLUX / "prompts.jsonl")
    parts = split(prompts, 640, 32, 64, 0)
    assert record is not None
    assert requests_digest([*parts.fitting, *parts.validation]) == record.fitting_prompts
    assert requests_digest(parts.heldout) == record.heldout_prompts
    assert len(heldout_part(prompts, record)) == 6
