"""Candidates for one budget of full computations: the search's best, a refined schedule, and tuned weights."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost import EFFICIENCY, CostModel
from cachesmith.calibrate.guidance import Guidance
from cachesmith.calibrate.record.stage import Recording
from cachesmith.calibrate.score_cache import Memo, digest_of
from cachesmith.calibrate.search.study import Candidate
from cachesmith.calibrate.tune.improve import MOVED, TUNING, Plan, fitting_losses, refined, tuned
from cachesmith.calibrate.tune.move_steps import by_halves, resize, spaced
from cachesmith.calibrate.tune.rows import RIDGES, Rows, fitted_rows, line, starting_rows
from cachesmith.calibrate.tune.successive_halving import POWERS, length, race
from cachesmith.policies import Follower, Policy, PolicyError, Profile, computations
from cachesmith.policies.base import Arrays
from cachesmith.progress import stage
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.scores import bootstrap

FOLLOWERS: Mapping[Guidance, tuple[Follower, ...]] = {
    "none": (),
    "batched": ("first", "second"),
    "sequential": ("later",),
}


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
        self._chosen: dict[float, Candidate] = {}
        self.losses: dict[str, list[float]] = {}
        """Mask -> PSNR in dB of the fitted pictures, one value an iteration."""

    def choose(self, budget: float) -> Candidate:
        """Return the candidate within `budget` full computations that is best on the validation requests."""
        if budget % 1 and self._follower is None:
            budget = int(budget)
        if budget not in self._chosen:
            candidates = [*self._made(budget), *self._searched(budget)]
            with stage(f"NFC {budget:g}: validation", len(candidates)) as advance:
                self._chosen[budget] = pick(candidates, self.validation, budget, advance)
        return self._chosen[budget]

    def _made(self, budget: float) -> list[Candidate]:
        config = self.config
        with stage(f"NFC {budget:g}: schedule", config.moves) as advance:
            plan = refined(self.fitting, self._memo, self._starts(budget), self._untuned, config, advance)
        untuned = self._rows(plan)
        mask, start = self._raced(budget, plan, untuned)
        with stage(f"NFC {budget:g}: weights", config.iterations) as advance:
            saved = self._saved("tuned", mask, plan.start)
            rows = tuned(self.fitting, mask, start, saved, config, advance)
        self.losses[mask] = fitting_losses(saved)
        made = {
            "tuned weights": rows.policy(mask, f"nfc-{budget:g}"),
            "refined schedule": untuned.policy(plan.mask, f"nfc-{budget:g}"),
            "refined schedule, line": line(plan.mask, self._follows(plan.mask)),
        }
        return [Candidate(policy, policy.profile(), name, budget, 0.0) for name, policy in made.items()]

    def _raced(self, budget: float, plan: Plan, untuned: Rows) -> tuple[str, Rows]:
        """The schedule whose weights promise most, of `plan` and spaced ones; an earlier policy's goes on."""
        others = [mask for mask in self._entrants(budget) if mask != plan.mask]
        iterations = length(1 + len(others), self.config.iterations)
        if isinstance(plan.start, str) or not iterations:
            return plan.mask, untuned
        entrants = {plan.mask: untuned} | {mask: self._rows(Plan(mask, plan.start)) for mask in others}
        saved = partial(self._saved, "race", plan)
        with stage(f"NFC {budget:g}: race", iterations) as advance:
            return race(self.fitting, entrants, saved, self.config, advance)

    def _entrants(self, budget: float) -> list[str]:
        """Spaced schedules; where one half of guidance can follow the other, with steps that are computed by half."""
        steps, halved = self.config.steps, self._follower is not None
        masks = (by_halves(budget, steps, p) if halved else spaced(int(budget), steps, p) for p in POWERS)
        return list(dict.fromkeys(masks))

    @cached_property
    def _follower(self) -> Follower | None:
        """The half of guidance that is forecast better from the other; None where neither can be."""
        steps = self.config.steps
        mask = by_halves(max(2, steps // 5), steps)
        scores = {half: self._followed(mask, half) for half in FOLLOWERS[self.recording.guidance]}
        able = {half: psnr for half, (psnr, nfc) in scores.items() if nfc <= computations(mask) + 1e-9}
        return max(able, key=able.__getitem__, default=None)

    def _followed(self, mask: str, half: Follower) -> tuple[float, float]:
        """PSNR and NFC of untuned weights; more NFC than the schedule has where `half` cannot follow."""
        key = f"{mask} {half}"
        known = self._memo.get(key)
        if known is None:
            with warnings.catch_warnings(), suppress(PolicyError):
                warnings.simplefilter("ignore", RuntimeWarning)
                outcome = self.fitting(line(mask, half), MOVED)
                known = [outcome.psnr, outcome.nfc]
            known = known or [0.0, float(len(mask))]
            self._memo.put(key, known)
        return known[0], known[1]

    def _follows(self, mask: str) -> Follower | None:
        return self._follower if "H" in mask else None

    def _saved(self, *what: object) -> Path:
        """The file for weights that are tuned with these settings."""
        config = self.config
        options = digest_of(*what, config.iterations, config.tune_batch, config.learning_rate, TUNING)
        return config.work / f"rows-{self.key}-{options}.pt"

    def _starts(self, budget: float) -> list[Plan]:
        whole = int(budget)
        masks = [
            self.recording.space.schedules[whole],
            spaced(whole, self.config.steps),
            *((by_halves(budget, self.config.steps),) if budget % 1 else ()),
            *(resize(mask, whole) for mask in self.config.earlier_masks if "H" not in mask),
            *(mask for mask in self._earlier_halves() if computations(mask) == budget),
        ]
        ridges = RIDGES if self.recording.grams else (None,)
        starts = [Plan(mask, ridge) for mask in masks for ridge in ridges]
        if self.config.earlier is not None:
            starts += [Plan(mask, self.config.earlier.id) for mask in masks if self._fitted(mask)]
        return starts

    def _earlier_halves(self) -> list[str]:
        """The earlier policy's schedules with steps by half, where halves can follow."""
        return [mask for mask in self.config.earlier_masks if "H" in mask and self._follower is not None]

    def _fitted(self, mask: str) -> Rows | None:
        """The earlier policy's weights, where they have the shape of this model's, and the same half follows."""
        rows = None if self.config.earlier is None else fitted_rows(self.config.earlier, mask)
        lanes, channels = self.recording.stack
        if rows is None or rows.follower != self._follows(mask):
            return None
        shape = (lanes * (1 if rows.follower is None else 2), self.config.steps, self.config.taps, channels)
        return rows if rows.outputs.shape == shape else None

    def _rows(self, plan: Plan) -> Rows:
        rows = self._fitted(plan.mask) if isinstance(plan.start, str) else None
        ridge = None if isinstance(plan.start, str) else plan.start
        recording = self.recording
        return rows or starting_rows(
            plan.mask, self.config.taps, recording.stack, recording.grams, ridge, self._follows(plan.mask)
        )

    def _untuned(self, plan: Plan) -> Policy:
        if plan.start is None:
            return line(plan.mask, self._follows(plan.mask))
        return self._rows(plan).policy(plan.mask, "start")

    def _searched(self, budget: float) -> list[Candidate]:
        """The search's best two within the budget whose forecasts do not eat up what skipping saves."""
        within = [candidate for candidate in self.found if candidate.nfc <= budget and self._pays(candidate)]
        return sorted(within, key=lambda candidate: -candidate.psnr)[:2]

    def _pays(self, candidate: Candidate) -> bool:
        return self.costs.efficiency(candidate.profile, candidate.nfc, self.config.steps) >= EFFICIENCY


def fastest(makers: Makers, psnr: float, steps: int) -> Candidate:
    """Bisect, by halves of a computation, for the smallest budget that holds `psnr` at the lower end of 95 %.

    Judged on the validation requests: the held-out ones choose nothing, so that what is reported of them is fair.
    Raises `PolicyError` when even half of all steps do not hold it.
    """

    def holds(halves: int) -> bool:
        samples = makers.validation(makers.choose(halves / 2).policy).samples
        return bootstrap(samples, makers.config.seed)[0] >= psnr

    low, high = 3, 2 * (steps // 2)
    if not holds(high):
        raise PolicyError(
            f"no policy with a speed-up of 2 or more holds {psnr:g} dB; ask for less with --min-psnr"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return makers.choose(high / 2)


def warn_if_short(profile: Profile, psnr: float) -> None:
    """Warn when a profile that held `psnr` on the validation requests does not on the held-out ones."""
    quality = profile.quality
    if quality is not None and quality.psnr_low < psnr:
        warnings.warn(
            f"the profile for --min-psnr {psnr:g} has {quality.psnr_low:.2f} to {quality.psnr_high:.2f} dB on held-out "
            "samples; ask for more with --min-psnr, or choose on more samples with --validation",
            RuntimeWarning,
            stacklevel=2,
        )


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
