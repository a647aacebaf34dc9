"""Candidates for one budget of full computations: the search's best, a refined schedule, and tuned weights."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost import EFFICIENCY, CostModel
from cachesmith.calibrate.evaluate import Evaluator, as_policy
from cachesmith.calibrate.memo import Memo, digest_of
from cachesmith.calibrate.metrics import bootstrap
from cachesmith.calibrate.progress import stage
from cachesmith.calibrate.prompts import Request
from cachesmith.calibrate.recording import Recording
from cachesmith.calibrate.refine import from_steps, refine, resize
from cachesmith.calibrate.search import Candidate
from cachesmith.calibrate.tune import Rows, starting_rows, tune
from cachesmith.policies import (
    Fitted,
    Fixed,
    Forecaster,
    Lagrange,
    Policy,
    PolicyError,
    Profile,
    Stack,
)
from cachesmith.policies.base import Arrays

PROBE = 8
"""Samples on which a move is tried before it is run on more."""

MOVED = 32
"""Samples that decide about a move."""

FASTEST = 0.03
"""Largest step of a weight in one iteration: weights are of order one."""

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
            known = evaluator(as_policy(fixed_profile(candidate)), count or MOVED).samples.tolist()
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
    shape: tuple[int, int],
    saved: Path,
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> Policy:
    """Fit the weights of `schedule` by gradient through the closed loop; `saved` keeps them for a resumed run.

    shape: number of the stack's streams, and of their channels.
    """
    if saved.exists():
        rows = Rows(*torch.load(saved, weights_only=True))
        advance(config.iterations)
    else:
        rows = _learned(evaluator, schedule, shape, config, advance)
        torch.save(tuple(rows), saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").replace(saved)
    fitted = Fitted(weights=f"{prefix}/weights", input_weights=f"{prefix}/input_weights", ids=f"{prefix}/ids")
    return as_policy(fixed_profile(schedule, Forecaster(rows=fitted)), rows.arrays(prefix))


def _learned(
    evaluator: Evaluator,
    schedule: str,
    shape: tuple[int, int],
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> Rows:
    # the closer the line comes, the finer the weights must be set
    line = evaluator(as_policy(fixed_profile(schedule)), MOVED).psnr
    rate = min(FASTEST, config.learning_rate * 10 ** (-line / 20))
    start = starting_rows(schedule, config.taps, *shape)
    return tune(
        evaluator.renderer, _batches(evaluator, config), schedule, start, rate,
        lambda loss: advance(1, note=f"{-10 / 2.302585 * loss:.2f} dB"),
    )  # fmt: skip


def _batches(evaluator: Evaluator, config: CalibrationConfig) -> list[tuple[list[Request], Tensor]]:
    chooser = random.Random(config.seed)
    size = min(config.tune_batch, len(evaluator.requests))
    batches = []
    for _ in range(config.iterations):
        picked = chooser.sample(range(len(evaluator.requests)), size)
        batches.append(([evaluator.requests[i] for i in picked], evaluator.reference.images[picked]))
    return batches


def uniform(budget: int, steps: int) -> str:
    """`budget` computed steps as evenly spread as can be, the first among them."""
    return from_steps({round(i * steps / budget) for i in range(budget)}, steps)


def earlier_schedules(config: CalibrationConfig, budget: int) -> list[str]:
    """The stack schedules of the earlier policy, brought to `budget` computed steps."""
    profiles = config.earlier.document.profiles.values() if config.earlier else ()
    masks = [p.gate.mask for p in profiles if isinstance(p.units, Stack) and isinstance(p.gate, Fixed)]
    return [resize(mask, budget) for mask in masks if len(mask) == config.steps]


class Makers:
    """Makes and judges the candidates of a budget; asked twice for one budget, it answers from memory."""

    def __init__(
        self,
        fitting: Evaluator,
        validation: Evaluator,
        recording: Recording,
        found: Sequence[Candidate],
        costs: CostModel,
        config: CalibrationConfig,
        key: str,
    ):
        self.fitting, self.validation, self.recording = fitting, validation, recording
        self.found, self.costs, self.config, self.key = found, costs, config, key
        self._memo = Memo(config.work / f"scores-{key}.jsonl")
        self._chosen: dict[int, Candidate] = {}

    def choose(self, budget: int) -> Candidate:
        """Return the candidate within `budget` full computations that is best on the validation requests."""
        if budget not in self._chosen:
            candidates = [*self._made(budget), *self._searched(budget)]
            with stage(f"NFC {budget}: validation", len(candidates)) as advance:
                self._chosen[budget] = pick(candidates, self.validation, budget, advance)
        return self._chosen[budget]

    def _made(self, budget: int) -> list[Candidate]:
        config = self.config
        starts = [
            self.recording.space.schedules[budget],
            uniform(budget, config.steps),
            *earlier_schedules(config, budget),
        ]
        with stage(f"NFC {budget}: schedule", config.moves) as advance:
            schedule = refined(self.fitting, self._memo, starts, config, advance)
        options = digest_of(schedule, config.iterations, config.tune_batch, config.learning_rate)
        saved = config.work / f"rows-{self.key}-{options}.pt"
        with stage(f"NFC {budget}: weights", config.iterations) as advance:
            policy = tuned(
                self.fitting, schedule, f"nfc-{budget}", self.recording.stack, saved, config, advance
            )
        line = as_policy(fixed_profile(schedule))
        return [
            Candidate(policy, policy.profile(), "refined schedule, tuned weights", budget, 0.0),
            Candidate(line, line.profile(), "refined schedule", budget, 0.0),
        ]

    def _searched(self, budget: int) -> list[Candidate]:
        """The search's best two within the budget whose forecasts do not eat up what skipping saves."""
        within = [candidate for candidate in self.found if candidate.nfc <= budget and self._pays(candidate)]
        return sorted(within, key=lambda candidate: -candidate.psnr)[:2]

    def _pays(self, candidate: Candidate) -> bool:
        return self.costs.efficiency(candidate.profile, candidate.nfc, self.config.steps) >= EFFICIENCY


def fastest(makers: Makers, heldout: Evaluator, psnr: float, steps: int) -> Candidate:
    """Bisect for the smallest budget whose held-out PSNR (lower end of its 95 % interval) is at least `psnr`.

    Raises `PolicyError` when even half of all steps do not hold it.
    """

    def holds(budget: int) -> bool:
        samples = heldout(makers.choose(budget).policy).samples
        return bootstrap(samples, makers.config.seed)[0] >= psnr

    low, high = 1, steps // 2
    if not holds(high):
        raise PolicyError(
            f"no policy with a speed-up of 2 or more holds {psnr:g} dB; ask for less with --min-psnr"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return makers.choose(high)


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
