"""From uncached samples to one profile of the whole stack: schedule, least squares, gradients."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.fit import Fit, SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.objective import PSNR, Objective
from cachesmith.calibrate.prepared import Prepared
from cachesmith.calibrate.schedules.drift import growth, nudged
from cachesmith.calibrate.schedules.path_costs import told_by_paths
from cachesmith.calibrate.schedules.search import (
    RunShape,
    ShapeParameters,
    first_shapes,
    is_along_paths,
    search_shapes,
    shaped,
    typical_schedule,
)
from cachesmith.calibrate.studies import open_study
from cachesmith.calibrate.work_folder import Memo, digest_of, load_tensors, save_tensors
from cachesmith.policies import Follower, computations
from cachesmith.sampling.metrics import METRICS

SAVED_EVERY = 20.0
"""Seconds between two savings of unfinished gradients."""


@dataclass(frozen=True)
class Weighted:
    """A schedule with weights; psnr: of the fitted samples, by least squares alone, dB; losses: of the gradients."""

    schedule: Schedule
    rows: Rows
    psnr: float
    source: str
    losses: tuple[float, ...] = ()


class ProfileMaker:
    """Makes profiles from the same uncached samples; all that takes long is kept in the work folder."""

    def __init__(self, prepared: Prepared, config: CalibrationConfig, advance: Callable[[float], None]):
        self.shards, self.shape = prepared.shards, prepared.shape
        self.plan, self.ledger, self.key = prepared.plan, prepared.ledger, prepared.key
        self.config, self.advance = config, advance
        lpips = config.lpips if METRICS[config.objective].function is None else None
        self.objective = Objective(config.objective, lpips)
        self._memo = Memo(config.work / f"scores-{self.key}.jsonl")
        self._scheduler = prepared.renderer.pipe.scheduler
        self._cheaper: ShapeParameters | None = None

    def __call__(self, budget: float, earlier: tuple[Schedule, Rows] | None = None) -> Weighted:
        """The profile with at most `budget` full computations; it goes on from `earlier`, if that is given."""
        if self.shape.follower is None:
            budget = math.floor(budget)
        schedule, start = earlier or (self._schedule(budget), None)
        fit = self._fitted(schedule, start)
        rows, losses = self._polished(fit) if self.plan.iterations else (fit.rows, ())
        how = (
            f"{self.plan.iterations} gradients after least squares"
            if self.plan.iterations
            else "least squares"
        )
        source = how if start is None else f"{how}, from the earlier policy"
        return Weighted(schedule, rows, fit.psnr, source, losses)

    def _schedule(self, budget: float) -> Schedule:
        """The best of some shapes. That of the profile made before is tried first, and then the usual one."""
        by = "" if self.objective == PSNR else f"-{self.objective.name}"
        study = open_study(
            self.config.storage, self.config.work, f"schedules-{self.key}-{budget:g}{by}", ["maximize"]
        )
        trials = self.plan.shapes if self._cheaper is None else self.plan.more_shapes
        run = self._run(self.shape.follower)
        shape = first_shapes(budget, run, self._cheaper)[0]
        usual, compared = shaped(shape, budget, run), dict[Schedule, float]()

        def score(schedule: Schedule) -> float:
            compared[schedule] = _typical(self._scores(schedule))
            # weights and curvatures are large: those of the two that one is chosen from are kept
            self._forget(compared.keys() - {usual, max(compared, key=compared.__getitem__)})
            return compared[schedule]

        found = search_shapes(study, budget, run, trials, self.config.seed, score, self._cheaper)
        best = shaped(found, budget, run)
        alike = is_along_paths(found) == is_along_paths(shape)
        taken = alike or _better(self._scores(best), self._scores(usual))
        self._cheaper, chosen = (found, best) if taken else (shape, usual)
        self._forget({best, usual} - {chosen})
        return chosen

    def unsearched(self, budget: int) -> Tensor:
        """Out-of-fold PSNR [N] of least squares for a budget, without a search for its schedule."""
        schedule = typical_schedule(budget, self._run(None))
        return self._memo.found(
            f"out of fold: {schedule}", lambda: self._fit(schedule, apart=True, curved=False).samples
        )

    @cached_property
    def _costs(self) -> Tensor | None:
        """Of segments, see `RunShape`. All paths are read for it: nobody needs them where no schedule is looked for."""
        return told_by_paths(self._scheduler, self.plan.steps, self.shards.moves, self._grown)

    def _grown(self, scales: Tensor) -> Tensor:
        """What squared errors are multiplied by, see `told_by_paths`."""
        schedule, samples = nudged(self.plan.steps, self.shape.starts), self.plan.nudged
        if schedule is None:
            return torch.ones_like(scales)
        advance, computed = self._counted("schedules"), computations(schedule.mask)

        def drift() -> Tensor:
            with self.ledger.phase("schedules"):
                return self.shards.drift(
                    range(samples), schedule, self.shape.channels, lambda count: advance(count * computed)
                ).flatten()

        errors = self._memo.found(f"drift of {samples} samples: {schedule}", drift)
        return growth(errors.view(samples, -1) * scales.square(), schedule)

    def _run(self, follower: Follower | None) -> RunShape:
        return RunShape(self.plan.steps, follower, self.shape.starts, self._costs)

    def _scores(self, schedule: Schedule) -> Tensor:
        """Scores [N] of least squares, by the search's objective."""
        return self._memo.found(f"{self.objective.name}: {schedule}", lambda: self._fitted(schedule).scores)

    def _fitted(self, schedule: Schedule, start: Rows | None = None) -> Fit:
        path = self._fit_file(schedule, start)
        if path.exists():
            return Fit.load(load_tensors(path))
        fit = self._fit(
            schedule,
            start=start,
            hold=start is not None,
            curved=bool(self.plan.iterations),
            objective=self.objective,
        )
        save_tensors(path, fit.saved())
        return fit

    def _fit(self, schedule: Schedule, **how: Any) -> Fit:
        """`how`: options of `SegmentFitter`."""
        with self.ledger.phase("least squares"):
            return SegmentFitter(
                self.shards, schedule, self.shape.channels, advance=self._counted("least squares"), **how
            )()

    def _fit_file(self, schedule: Schedule, start: Rows | None = None) -> Path:
        earlier = None if start is None or self.config.earlier is None else self.config.earlier.id
        curved = () if self.plan.iterations else ("without curvatures",)
        return self._file("fit", schedule, earlier, self.objective.name, *curved)

    def _forget(self, schedules: Iterable[Schedule]) -> None:
        """Delete their fits."""
        for schedule in schedules:
            self._fit_file(schedule).unlink(missing_ok=True)

    def _polished(self, fit: Fit) -> tuple[Rows, tuple[float, ...]]:
        path = self._file("gradients", fit.schedule, self.plan.iterations, fit.psnr)
        again = bool(self.config.gradient_checkpointing)
        polisher = Polisher(self.shards, fit, self.plan.size, self.config.seed, recomputed=again)
        if path.exists():
            polisher.load(load_tensors(path))
        saved = monotonic()

        whole, graded = computations(fit.schedule.mask), _graded(fit.schedule.mask)
        forwards = whole + graded if again else whole

        def advance(samples: float) -> None:
            nonlocal saved
            phase = self.ledger.phases["gradients"]
            phase.forwards += samples * forwards
            phase.backwards += samples * graded
            self.advance(samples * (forwards + graded) / self.plan.steps)
            if monotonic() - saved > SAVED_EVERY:
                self._save(polisher, path)
                saved = monotonic()

        with self.ledger.phase("gradients"):
            rows = polisher(self.plan.iterations, advance)
        self._save(polisher, path)
        return rows, tuple(polisher.losses)

    def _save(self, polisher: Polisher, path: Path) -> None:
        save_tensors(path, polisher.saved())
        self.ledger.save()

    def _counted(self, phase: str) -> Callable[[float], None]:
        def advance(samples: float) -> None:
            self.ledger.phases[phase].forwards += samples
            self.advance(samples / self.plan.steps)

        return advance

    def _file(self, kind: str, *what: object) -> Path:
        return self.config.work / f"{kind}-{self.key}-{digest_of(*what)}.pt"


def _graded(mask: str) -> float:
    """Full computations that a gradient goes back through: those after the first forecast."""
    return computations(mask[next(step for step, letter in enumerate(mask) if letter in "FH") + 1 :])


def _typical(samples: Tensor) -> float:
    """Half the mean of all, and half that of the worse half: a schedule is not to be good on average alone."""
    worse = samples.sort().values[: max(1, len(samples) // 2)]
    return float((samples.mean() + worse.mean()) / 2)


def _better(samples: Tensor, usual: Tensor) -> bool:
    """Whether `samples` are better than the same ones under the usual schedule by more than chance, which is two
    standard errors."""
    if len(samples) < 2:
        return False
    chance = 2 * float((samples - usual).std()) / math.sqrt(len(samples))
    return _typical(samples) - _typical(usual) > chance
