"""Schedules are judged by what their weights can become."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.calibrate.small import run as calibrated
from tests.calibrate.small import settings
from tests.tiny import tiny_dit

from cachesmith.calibrate import candidates
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.tune import successive_halving as module
from cachesmith.calibrate.tune.improve import Plan, refined
from cachesmith.calibrate.tune.move_steps import by_halves, spaced
from cachesmith.calibrate.tune.rows import Rows, starting_rows
from cachesmith.calibrate.tune.successive_halving import length, race, rounds
from cachesmith.policies import computations
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

STEPS = 10
EVEN, EARLY, LATE = "CFFFCFFCFF", "CCCFFFFFFF", "CFFFFFFFCC"


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    renderer = Renderer(tiny_dit(), STEPS, guidance_scale=1.5)
    return Evaluator(renderer, requests([{"class_labels": i} for i in range(4)], 4, 0))


def run(evaluator: Evaluator, work: Path) -> tuple[str, Rows, int]:
    shape = (1, 32)
    entrants = {mask: starting_rows(mask, 3, shape, {}, None) for mask in (EARLY, LATE, EVEN)}
    config = CalibrationConfig(steps=STEPS, iterations=24, tune_batch=4)  # rounds of 4
    taken = [0]

    def advance(count: int, **_: object) -> None:
        taken[0] += count

    mask, rows = race(evaluator, entrants, lambda mask, number: work / f"{mask}-{number}", config, advance)
    return mask, rows, taken[0]


def test_the_best_schedule_is_left_with_tuned_weights(evaluator: Evaluator, tmp_path: Path) -> None:
    mask, rows, taken = run(evaluator, tmp_path)
    scores = {}
    for path in tmp_path.iterdir():
        name = path.name.removesuffix("-0")
        scores[name] = evaluator(Rows(*torch.load(path, weights_only=True)).policy(name, "t")).psnr
    assert set(scores) == {EVEN, EARLY, LATE} and mask == max(scores, key=scores.__getitem__)
    assert not torch.equal(rows.outputs, starting_rows(mask, 3, (1, 32), {}, None).outputs)
    assert taken == 3 * 4


def test_a_resumed_race_tunes_nothing_again(evaluator: Evaluator, tmp_path: Path) -> None:
    mask, rows, _ = run(evaluator, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = run(evaluator, tmp_path)
    assert again[0] == mask and torch.equal(again[1].outputs, rows.outputs)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_one_entrant_has_won(evaluator: Evaluator, tmp_path: Path) -> None:
    start = starting_rows(EVEN, 3, (1, 32), {}, None)
    config = CalibrationConfig(steps=STEPS)
    assert race(evaluator, {EVEN: start}, lambda *_: tmp_path / "none", config, print) == (EVEN, start)


def test_how_long_a_race_is() -> None:
    assert rounds(1) == [] and rounds(5) == [5, 2] and rounds(8) == [8, 4, 2]
    assert length(5, 240) == 7 * 40 and length(5, 120) == 7 * 20
    assert length(5, 119) == length(1, 240) == 0


def test_calibration_races_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: set[str] = set()

    def spy(evaluator: Evaluator, entrants: Any, *others: Any) -> tuple[str, Rows]:
        entered.update(entrants)
        return race(evaluator, entrants, *others)

    monkeypatch.setattr(module, "SHORTEST", 1)
    monkeypatch.setattr(candidates, "race", spy)
    first = calibrated(tmp_path, iterations=6)
    assert settings(tmp_path).budgets["quality"] == 4.5
    assert {computations(mask) for mask in entered} == {2, 3, 4, 4.5}  # 4: without steps by half
    raced = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows-*")}
    budgets = len(set(settings(tmp_path).budgets.values()))
    assert len(raced) > 3 * budgets  # each with more rounds than one
    followers = {torch.load(path, weights_only=True)[2] for path in raced}
    assert None in followers and followers & {"first", "second"}  # guidance is in one batch
    assert calibrated(tmp_path, iterations=6) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows-*")} == raced


def test_without_followers_budgets_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 1)
    policy = calibrated(tmp_path, guidance_scale=1.0, iterations=6)
    assert settings(tmp_path).budgets["quality"] == 4.5
    assert policy.profile("quality").nfc == 4
    assert not any("4.5" in name for name in policy.arrays)


def test_half_a_computation_is_tried_without_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: set[float] = set()

    def spy(evaluator: Evaluator, memo: Any, starts: list[Plan], *others: Any) -> Plan:
        tried.update(computations(plan.mask) for plan in starts)
        return refined(evaluator, memo, starts, *others)

    monkeypatch.setattr(candidates, "refined", spy)
    calibrated(tmp_path, iterations=0)
    assert tried == {2, 3, 4, 4.5}


@given(st.integers(2, 50), st.integers(2, 25), st.sampled_from(module.POWERS))
def test_spaced_steps_are_as_many_as_asked_and_spread_ever_further_apart(
    steps: int, budget: int, power: float
) -> None:
    budget = min(budget, steps)
    mask = spaced(budget, steps, power)
    computed = [i for i, letter in enumerate(mask) if letter == "C"]
    assert len(mask) == steps and len(computed) == budget and computed[0] == 0
    gaps = [b - a for a, b in pairwise(computed)]
    assert all(later >= earlier - 1 for earlier, later in pairwise(gaps))


@given(st.integers(4, 50), st.integers(50, 60), st.floats(1, 1.5))
def test_steps_by_half_keep_the_budget(halves: int, steps: int, power: float) -> None:
    budget = halves / 2
    mask = by_halves(budget, steps, power)
    assert len(mask) == steps and computations(mask) == budget and mask[0] == "C"
    assert "H" in mask


def test_spaced_evenly() -> None:
    assert spaced(5, 10) == "CFCFCFCFCF"
    assert spaced(8, 50, 1.3) == "".join(
        "C" if i in (0, 3, 8, 14, 20, 27, 34, 42) else "F" for i in range(50)
    )
