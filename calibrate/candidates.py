"""Candidates for one budget of full computations: the search's best, a refined schedule, and tuned weights."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.evaluate import Evaluator, as_policy
from cachesmith.calibrate.memo import Memo
from cachesmith.calibrate.prompts import Request
from cachesmith.calibrate.refine import refine
from cachesmith.calibrate.search import Candidate
from cachesmith.calibrate.tune import Rows, starting_rows, tune
from cachesmith.policies import Fitted, Fixed, Forecaster, Interval, Lagrange, Policy, Profile, Stack, mask
from cachesmith.policies.base import Arrays

PROBE = 8
"""Samples on which a move is tried before it is run on all fitting samples."""

LINE = Forecaster(rows=Lagrange(order=1))


def refined(
    evaluator: Evaluator,
    memo: Memo,
    starts: Sequence[str],
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> str:
    """Move the computed steps of the best of `starts` in closed loop, forecasting the stack by a line."""

    def score(candidate: str, count: int | None) -> float:
        key = f"{candidate} {count}"
        known = memo.get(key)
        if known is None:
            known = evaluator(as_policy(fixed_profile(candidate)), count).samples.tolist()
            memo.put(key, known)
        return sum(known) / len(known)

    best = max(dict.fromkeys(starts), key=lambda candidate: score(candidate, None))
    return refine(best, score, PROBE, config.moves, config.seed, advance)


def fixed_profile(schedule: str, forecaster: Forecaster = LINE) -> Profile:
    """The whole stack on a fixed schedule."""
    return Profile(units=Stack(), gate=Fixed(mask=schedule), forecaster=forecaster)


def tuned(
    evaluator: Evaluator,
    schedule: str,
    prefix: str,
    saved: Path,
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> Policy:
    """Fit the weights of `schedule` by gradient through the closed loop; `saved` keeps them for a resumed run."""
    if saved.exists():
        rows = Rows(*torch.load(saved, weights_only=True))
        advance(config.iterations)
    else:
        times = [float(i) for i in range(len(schedule))]
        start = starting_rows(schedule, times, config.taps)
        batches = _batches(evaluator, config)
        rows = tune(
            evaluator.renderer, batches, schedule, start, config.learning_rate,
            lambda loss: advance(1, note=f"{-10 / 2.302585 * loss:.2f} dB"),
        )  # fmt: skip
        torch.save(tuple(rows), saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").replace(saved)
    fitted = Fitted(weights=f"{prefix}/weights", input_weights=f"{prefix}/input_weights")
    return as_policy(fixed_profile(schedule, Forecaster(rows=fitted)), rows.arrays(prefix))


def _batches(evaluator: Evaluator, config: CalibrationConfig) -> list[tuple[list[Request], Tensor]]:
    chooser = random.Random(config.seed)
    size = min(config.tune_batch, len(evaluator.requests))
    batches = []
    for _ in range(config.iterations):
        picked = chooser.sample(range(len(evaluator.requests)), size)
        batches.append(([evaluator.requests[i] for i in picked], evaluator.reference.images[picked]))
    return batches


def uniform(budget: int, steps: int) -> str:
    """The interval schedule of at most `budget` computed steps whose interval is smallest."""
    for interval in range(1, steps + 1):
        schedule = mask(Interval(interval=interval), steps)
        if schedule.count("C") <= budget:
            return schedule
    return "C" + "F" * (steps - 1)


def pick(
    candidates: Sequence[Candidate], validation: Evaluator, budget: float, advance: Callable[..., None]
) -> Candidate:
    """Measure every candidate within `budget` on the validation requests and return the one closest to uncached."""
    best: Candidate | None = None
    for candidate in candidates:
        outcome = validation(candidate.policy)
        advance(1)
        measured = Candidate(candidate.policy, candidate.profile, candidate.source, outcome.nfc, outcome.psnr)
        if measured.nfc <= budget + 1e-9 and (best is None or measured.psnr > best.psnr):
            best = measured
    assert best is not None, "a refined schedule always keeps its budget"
    return best


def merge(parts: Sequence[Arrays]) -> Arrays:
    """All arrays of several profiles; equal names hold equal arrays."""
    return {name: array for part in parts for name, array in part.items()}
