"""Local moves: they find a planted optimum, keep the budget, respect the allowance and replay from a memo."""

import json
from pathlib import Path

import pytest

from cachesmith.calibrate.score_cache import Memo
from cachesmith.calibrate.tune.move_steps import refine, resize

START = "CFFFFCFFFFCFFFF"
BEST = "CFFCFFFFFFCFFFF"


def distance(mask: str, count: int | None) -> float:
    """Less is worse: minus the number of letters that differ from the planted optimum."""
    return -float(sum(a != b for a, b in zip(mask, BEST, strict=True)))


def test_finds_the_planted_schedule() -> None:
    assert refine(START, distance, 4, 200, 0, lambda: None) == BEST


def test_keeps_the_number_of_computed_steps_and_the_first() -> None:
    found = refine(START, lambda mask, _: float(mask.count("FC")), 4, 30, 1, lambda: None)
    assert found.count("C") == START.count("C")
    assert found[0] == "C"


def test_stops_at_its_allowance() -> None:
    calls: list[int] = []
    refine(START, distance, 4, 7, 0, lambda: calls.append(1))
    assert len(calls) == 7


def test_without_allowance_nothing_moves() -> None:
    assert refine(START, distance, 4, 0, 0, lambda: None) == START


def test_memo_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    memo = Memo(path)
    memo.put("CF 8", [1.0, 2.0])
    with path.open("a") as file:
        file.write(json.dumps(["CFF 8", [3.0]])[:9])
    again = Memo(path)
    assert again.get("CF 8") == [1.0, 2.0]
    assert again.get("CFF 8") is None


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 9, 16])
@pytest.mark.parametrize("mask", ["CFFFFFFFCFFFFFFF", "CCCCFFFFFFFFFFFF", "C" * 16])
def test_a_mask_is_brought_to_a_budget(mask: str, budget: int) -> None:
    made = resize(mask, budget)
    assert len(made) == len(mask) and made.count("C") == budget and made[0] == "C"


def test_a_mask_that_fits_its_budget_stays() -> None:
    assert resize("CFFCFCFF", 3) == "CFFCFCFF"


def test_the_longest_gap_is_halved_first() -> None:
    assert resize("CFCFFFFF", 3) == "CFCFFCFF"
