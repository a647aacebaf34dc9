"""Improve one schedule and its weights in closed loop: first the steps, then the weights."""

import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.score_cache import Memo
from cachesmith.calibrate.tune.gradient_checkpointing import recomputed
from cachesmith.calibrate.tune.move_steps import refine
from cachesmith.calibrate.tune.preconditioner import LEAST, PILOTS, POWER, SMALLEST
from cachesmith.calibrate.tune.rows import Rows
from cachesmith.calibrate.tune.tune import PATH, Batch, tune
from cachesmith.files import write_atomically
from cachesmith.policies import Policy
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.waypoints import WAYPOINTS

PROBE = 8
"""Samples on which a move is tried before it is run on more."""

MOVED = 32
"""Samples that decide about a move."""

FASTEST = 0.015
"""Largest step along an axis in one iteration; along the shortest axes, weights go 32 times as far."""

TUNING = (POWER, SMALLEST, PILOTS, LEAST, WAYPOINTS, PATH, FASTEST)
"""What else decides how weights are tuned: rows of other values are no part of a resumed run."""

Start = float | str | None
"""Weights to start from: fitted to recorded runs with this ridge, those of the policy with this id, or a line."""


class Plan(NamedTuple):
    """A schedule, and the weights it starts from."""

    mask: str
    start: Start


Untuned = Callable[[Plan], Policy]
"""Makes the policy of a schedule with the weights it starts from."""


def refined(
    evaluator: Evaluator,
    memo: Memo,
    starts: Sequence[Plan],
    untuned: Untuned,
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> Plan:
    """Move the computed steps of the best of `starts` in closed loop; weights of a policy fit no other steps."""

    def score(plan: Plan, count: int) -> float:
        key = f"{plan.mask} {plan.start} {count}"
        known = memo.get(key)
        if known is None:
            known = evaluator(untuned(plan), count).samples.tolist()
            memo.put(key, known)
        return sum(known) / len(known)

    best = max(dict.fromkeys(starts), key=lambda plan: score(plan, MOVED))
    if isinstance(best.start, str):
        advance(config.moves)
        return best
    mask = refine(
        best.mask,
        lambda moved, count: score(Plan(moved, best.start), count or MOVED),
        PROBE,
        config.moves,
        config.seed,
        advance,
    )
    return Plan(mask, best.start)


def tuned(
    evaluator: Evaluator,
    mask: str,
    start: Rows,
    saved: Path,
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> Rows:
    """Fit the weights of `mask` by gradient through the closed loop; `saved` keeps them for a resumed run.

    While they are unfinished, a file beside it does.
    """
    if saved.exists():
        advance(config.iterations)
        return Rows(*torch.load(saved, weights_only=True))
    # the closer the start comes, the finer the weights must be set
    error = 10 ** (-evaluator(start.policy(mask, "start"), MOVED).psnr / 20)
    unfinished = saved.with_suffix(".unfinished")
    transformer = evaluator.renderer.pipe.transformer
    losses: list[float] = []

    def note(loss: float) -> None:
        losses.append(-10 / math.log(10) * loss)
        advance(1, note=f"{losses[-1]:.2f} dB")

    with recomputed(transformer) if config.gradient_checkpointing else nullcontext():
        rows = tune(
            evaluator.renderer, _batches(evaluator, config), mask, start, min(FASTEST, config.learning_rate * error),
            note, unfinished,
        )  # fmt: skip
    write_atomically(_losses(saved), json.dumps(losses).encode())
    held = BytesIO()
    torch.save(tuple(rows), held)
    write_atomically(saved, held.getbuffer())
    unfinished.unlink(missing_ok=True)
    return rows


def fitting_losses(saved: Path) -> list[float]:
    """PSNR in dB on the fitting samples after every iteration of `tuned`; empty where nothing was kept of it."""
    path = _losses(saved)
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def _losses(saved: Path) -> Path:
    return saved.with_suffix(".losses.json")


def _batches(evaluator: Evaluator, config: CalibrationConfig) -> list[Batch]:
    chooser = random.Random(config.seed)
    size = min(config.tune_batch, len(evaluator.requests))
    batches = []
    for _ in range(config.iterations):
        picked = chooser.sample(range(len(evaluator.requests)), size)
        requests = [evaluator.requests[i] for i in picked]
        batches.append(Batch(requests, evaluator.reference.images[picked], evaluator.path[picked]))
    return batches
