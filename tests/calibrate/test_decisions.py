"""What a calibration decides, by itself: what is compared with what, and which way a doubt falls."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from tests.calibrate.small import settings
from torch import Tensor

from cachesmith.calibrate import CalibrationConfig, profiles, spaces
from cachesmith.calibrate.closed_loop import fit as fitting
from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.descent import loss
from cachesmith.calibrate.closed_loop.fit import RIDGES, Curvature, Fit, SegmentFitter, Walked
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.cost.plan import make_plan, make_rfc_plan
from cachesmith.calibrate.objective import PSNR
from cachesmith.calibrate.profiles import ProfileMaker
from cachesmith.calibrate.rfc import search as rfc
from cachesmith.calibrate.schedules.search import (
    RunShape,
    first_shapes,
    search_shapes,
    shaped,
    usual_schedule,
)
from cachesmith.policies import PolicyError

MASK = Schedule("CFCF")


# the budget


def test_comparisons_of_schedules_are_a_quarter_of_the_budget() -> None:
    for budget in (100.0, 300.0, 1000.0, 3000.0):
        plan = make_plan(50, [7, 10, 14], budget)
        fitting = next(phase for phase in plan.phases if phase.name == "least squares")
        assert plan.shapes == 2 or fitting.forwards / plan.steps <= 0.25 * budget + 1e-9
        assert plan.shapes <= 12


def test_profiles_share_the_samples_that_a_budget_pays_for() -> None:
    assert make_plan(50, [8], 400.0).samples == 80
    assert make_plan(50, [8] * 4, 400.0).samples == 40


def test_a_gradient_is_of_no_more_samples_than_there_are() -> None:
    plan = make_plan(50, [8], 300.0, samples=3)
    assert plan.size == 3
    gradients = plan.phases[-1]
    assert gradients.backwards == 7 * 3 * plan.iterations and gradients.forwards == 8 * 3 * plan.iterations


def test_a_recomputed_gradient_costs_its_forwards_again() -> None:
    plain, again = (make_plan(50, [8], 200.0, recomputed=each) for each in (False, True))
    assert again.phases[-1].forwards == (8 + 7) * again.size * again.iterations
    assert again.iterations == pytest.approx(plain.iterations * 15 / 22, abs=1)


def test_trials_of_single_modules_leave_what_references_and_recordings_take() -> None:
    plan = make_rfc_plan(50, 100.0, 1000)
    assert plan.samples == 16 and plan.shapes == (100 - 16 - 4) // (16 / 4)
    assert make_rfc_plan(50, 100.0, 5).shapes == 5


def test_a_backward_costs_what_a_forward_does(tmp_path: Path) -> None:
    ledger = Ledger(10, tmp_path / "ledger.json", torch.device("cpu"))
    with ledger.phase("gradients") as phase:
        phase.forwards, phase.backwards = 30.0, 20.0
    assert phase.runs(10) == ledger.runs == 5.0


# the schedule


def test_another_schedule_has_to_be_better_by_more_than_chance() -> None:
    usual, noise = torch.full((16,), 30.0), torch.tensor([1.0, -1.0] * 8)
    error = float(noise.std()) / 4
    assert profiles._better(usual + noise + 0.5 + 2.1 * error, usual)
    assert not profiles._better(usual + noise + 0.5 + 1.9 * error, usual)
    assert not profiles._better(usual + noise - 9 * error, usual)
    assert not profiles._better(usual[:1] + 5, usual[:1])  # one sample tells no chance
    # half of it are the worse samples: better on average is not enough
    worst = usual.clone()
    worst[:4] -= 12
    assert not profiles._better(worst + 4, usual) and profiles._better(worst + 12, usual)
    # what differs between samples, and not between schedules, is no chance
    apart = torch.linspace(20, 40, 16)
    assert profiles._better(apart + noise + 2.1 * error, apart)


@pytest.mark.parametrize(
    ("gain", "spacing", "kept"), [(0.1, "path", "usual"), (5.0, "path", "best"), (0.1, "power", "best")]
)
def test_the_best_schedule_of_its_kind_and_another_kind_where_it_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, spacing: str, kept: str
) -> None:
    names = {1.2: "best", 1.3: "usual"}
    shapes: dict[str, dict[str, Any]] = {
        "best": {"power": 1.2, "spacing": spacing},
        "usual": {"power": 1.3, "spacing": "power"},
    }
    schedules = {"best": Schedule("CFFC"), "usual": Schedule("CFCF")}
    quality = torch.tensor([30.0, 31.0, 29.0, 30.0])
    noise = torch.tensor([0.5, -0.5, 0.5, -0.5])
    maker: Any = object.__new__(ProfileMaker)
    maker.config, maker.key = settings(tmp_path), "key"
    maker.plan = make_plan(4, [2], 100.0)
    maker.shape = SimpleNamespace(follower=None, starts=(0,))
    maker.ledger = Ledger(4, tmp_path / "ledger.json", torch.device("cpu"))
    maker.objective, maker._costs, maker._cheaper = PSNR, None, None
    scores = {schedules["best"]: quality + noise + gain, schedules["usual"]: quality}
    maker._scores = lambda schedule: scores[schedule]
    tried: list[Any] = []

    def search(*given: Any) -> dict[str, Any]:
        tried.append(given)
        for schedule in schedules.values():
            maker._fit_file(schedule).touch()
            given[5](schedule)
        return shapes["best"]

    monkeypatch.setattr(profiles, "search_shapes", search)
    monkeypatch.setattr(profiles, "shaped", lambda shape, *_: schedules[names[shape["power"]]])
    monkeypatch.setattr(profiles, "first_shapes", lambda *_: [shapes["usual"]])
    assert maker._schedule(2) == schedules[kept]
    assert [name for name, each in schedules.items() if maker._fit_file(each).exists()] == [kept]
    maker._schedule(3)  # the next profile begins with what was best, and compares fewer
    assert [(given[3], given[6]) for given in tried] == [
        (maker.plan.shapes, None),
        (maker.plan.more_shapes, shapes[kept]),
    ]


def test_the_study_takes_its_best_trial_and_begins_with_the_usual_shapes() -> None:
    study = optuna.create_study(direction="maximize")
    seen: list[Schedule] = []
    scores = iter([1.0, 3.0, 2.0, 0.5])

    def score(schedule: Schedule) -> float:
        seen.append(schedule)
        return next(scores)

    run = RunShape(20)
    best = search_shapes(study, 5, run, 4, 0, score, {"power": 1.4})
    assert shaped(best, 5, run) == seen[1] == usual_schedule(5, run)
    assert [t.params["power"] for t in study.trials[:3]] == [1.4, *(p["power"] for p in first_shapes(5, run))]


def test_where_a_cheaper_profile_is_along_the_paths_that_is_usual() -> None:
    costs = torch.rand(20, 20, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = RunShape(20, costs=costs)
    assert [shape["spacing"] for shape in first_shapes(5, run)] == ["power", *["path"] * 3, "power"]
    apart = {"spacing": "power", "power": 1.2}
    assert first_shapes(5, run, apart) == first_shapes(5, run)
    along = {"spacing": "path", "tilt": 2.0}
    assert first_shapes(5, run, along)[0] == {"spacing": "path", "tilt": 0.0}
    study, seen = optuna.create_study(direction="maximize"), list[Schedule]()

    def score(schedule: Schedule) -> float:
        seen.append(schedule)
        return 0.0

    search_shapes(study, 5, run, 2, 0, score, along)
    assert seen == [shaped(along, 5, run), shaped({"spacing": "path", "tilt": 0.0}, 5, run)]


def test_shapes_that_are_one_schedule_are_tried_once_at_first() -> None:
    ramp = torch.arange(7.0, dtype=torch.float64)
    costs = (
        (ramp - ramp[:6, None]).clamp_min(0).pow(9).expand(6, 6, 7)
    )  # nothing but even steps, whatever the tilt
    run, study, seen = RunShape(6, costs=costs), optuna.create_study(direction="maximize"), list[str]()

    def score(schedule: Schedule) -> float:
        seen.append(schedule.mask)
        return 0.0

    search_shapes(study, 3, run, 2, 0, score, {"spacing": "path", "tilt": 0.0})
    assert len({*seen}) == 2


def test_a_floor_of_quality_is_held_at_its_lower_end(tmp_path: Path) -> None:
    """Not by the mean: samples of 3 dB a computation, give or take 4."""

    class Maker:
        shape = SimpleNamespace(starts=(0,))

        def unsearched(self, budget: int) -> Tensor:
            return 3.0 * budget + torch.tensor([4.0, -4.0] * 8)

    maker: Any = Maker()
    assert spaces._fastest(maker, settings(tmp_path, min_psnr=9.0)) == 4


# least squares


def test_the_ridge_that_ends_closest_is_found_from_wherever_the_last_one_was() -> None:
    for start in (None, *range(len(RIDGES))):
        for lowest in range(len(RIDGES)):
            fitter, walks = _fitter([abs(place - lowest) + 1.0 for place in range(len(RIDGES))])
            fitter._places = {} if start is None else {RIDGES: start}
            ridge, _, walked = fitter._turn(Segment(0, 2), _Grid(), torch.zeros(1), RIDGES)  # type: ignore[arg-type]
            assert (ridge, walked.error) == (RIDGES[lowest], 1.0)
            assert fitter._places[RIDGES] == lowest and len(walks) == len({*walks})
            if start == lowest:
                assert len(walks) <= 3


class _Grid:
    """Equations whose solutions are their ridges."""

    def without(self, theta: Tensor, factor: float) -> Tensor:
        return torch.tensor([factor])


def _fitter(errors: list[float]) -> tuple[SegmentFitter, list[float]]:
    """A fitter for which walks by the solution of the n-th ridge end at the n-th error."""
    fitter, walks = object.__new__(SegmentFitter), list[float]()

    def walked(segment: Segment, theta: Tensor) -> Walked:
        ridge = next(each for each in RIDGES if torch.isclose(theta, torch.tensor([each])))
        walks.append(ridge)
        return Walked(errors[RIDGES.index(ridge)], torch.zeros(1))

    fitter._walked = walked  # type: ignore[method-assign]
    return fitter, walks


TURNS_OF = {
    "worse at once: the lines stay": ([1.0, 1.1], 0.0, 1.0, 1),
    "better, then worse: the first turn stays": ([1.0, 0.5, 0.6], 2.0, 0.5, 2),
    "better and better: all turns": ([1.0, 0.5, 0.3, 0.2], 4.0, 0.2, 3),
    "hardly better any more: no further turn": ([1.0, 0.5, 0.49, 0.1], 3.0, 0.49, 2),
    "equally good is not better": ([1.0, 1.0, 0.1], 0.0, 1.0, 1),
}
"""Errors of the lines and of every turn; the ridge and error that are kept; turns that are taken."""


@pytest.mark.parametrize("name", TURNS_OF)
def test_a_turn_counts_only_if_it_ends_closer_out_of_fold(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    errors, ridge, after, taken = TURNS_OF[name]
    fitter, shards = _bare(), SimpleNamespace(compute=lambda *_: None, settle=lambda: None)
    fitter.shards = shards
    turns: list[tuple[float, ...]] = []
    shares: list[float] = []

    def turn(segment: Any, equations: Any, theta: Tensor, grid: Any) -> Any:
        turns.append(tuple(grid))
        place = len(turns)
        return place + 1.0, theta + 1, Walked(errors[place], torch.ones(1))

    def equations(segment: Any, theta: Tensor, squares: Any, share: float) -> Any:
        shares.append(share)
        return SimpleNamespace(
            target=lambda theta: theta,
            together=lambda theta, factor: 1 + theta[0],
            factors=lambda factor: (),
            width=1,
        )

    monkeypatch.setattr(fitting, "corrected", lambda schedule, segment, base, theta: {1: theta})
    fitter._turn, fitter._equations = turn, equations
    walks: list[Tensor] = []

    def walked(segment: Any, theta: Tensor) -> Walked:
        walks.append(theta)
        return Walked(errors[0], torch.ones(1))

    fitter._walked = walked
    fitter._segment(Segment(0, 2))
    (curvature,) = fitter._fit.curvatures
    assert (curvature.ridge, curvature.before, curvature.after) == (ridge, errors[0], after)
    assert len(turns) == taken and turns[0] == fitting.CAUTIOUS and {*turns[1:]} <= {RIDGES}
    assert shares[0] == fitting.FEW and {*shares[1:]} <= {1.0}
    # the first turn's solution is one, the next one's two, ...
    assert {*fitter._fit.rows[1].flatten().tolist()} == {max(0.0, ridge - 1)}
    # and the run goes on from where all samples end by it
    assert {*walks[-1].flatten().tolist()} == {max(0.0, ridge - 1)}


def _bare() -> Any:
    """A fitter without samples."""
    fitter: Any = object.__new__(SegmentFitter)
    fitter.folds, fitter.schedule, fitter.channels, fitter.device = 1, MASK, (1,), torch.device("cpu")
    fitter.base, fitter.ridges, fitter.hold, fitter.apart = {1: torch.zeros(1)}, RIDGES, False, False
    fitter.curved = True
    fitter.turns, fitter.share, fitter._fit, fitter.advance = 3, 1.0, Fit(MASK), lambda _: None
    return fitter


def test_a_walk_that_leads_nowhere_ends_far_away() -> None:
    fitter = _bare()
    fitter.shards = SimpleNamespace(go=lambda *_: torch.full((3,), 0.01))
    assert fitter._walked(Segment(0, 2), torch.zeros(1)).error == pytest.approx(0.1)
    fitter.shards = SimpleNamespace(go=lambda *_: torch.tensor([0.1, torch.nan]))
    assert fitter._walked(Segment(0, 2), torch.zeros(1)).error > 1e6


def test_each_sample_counts_by_its_own_error() -> None:
    """Quality is a mean of logarithms: a sample with 100 times the squared error weighs a tenth."""
    fitter, weights = _bare(), list[Tensor]()
    fitter.shards = SimpleNamespace(equations=lambda segment, theta, weight, share: weights.append(weight))
    fitter._equations(Segment(0, 2), torch.zeros(1), torch.tensor([1.0, 100.0, 1.0]), 1.0)
    (weight,) = weights
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight[0] / weight[1]) == pytest.approx(10.0, rel=0.01)


# gradients


def _polisher(segments: int = 1, unknowns: int = 4, width: int = 1) -> Polisher:
    """Without samples: what it decides of losses, gradients and errors alone."""
    polisher: Polisher = object.__new__(Polisher)
    polisher.state = {
        n: [torch.zeros(unknowns) for _ in range(segments)] for n in ("phi", "kept", "momentum", "average")
    }
    polisher.losses, polisher.scale, polisher.rate = [], 1.0, 0.2
    curvature = Curvature(Segment(0, 2), (torch.eye(unknowns),), 0.0, 1.0, 1.0, torch.ones(1))
    polisher.fit = Fit(MASK, {}, [curvature] * segments, width)
    return polisher


def test_a_loss_may_rise_by_chance_and_no_more() -> None:
    noise = torch.tensor(
        [1.0, -1.0] * 8
    )  # three standard errors of the difference of two such means are 1.095
    for rise, accepted in ((1.05, True), (1.14, False), (float("nan"), False)):
        polisher = _polisher()
        assert polisher._accepted(noise)
        assert polisher._accepted(noise + rise) == accepted
        assert polisher.scale == (1.0 if accepted else 0.5)
        assert len(polisher.losses) == 1 + accepted


def test_a_loss_is_compared_with_the_last_few() -> None:
    """An early loss that was high allows nothing later."""
    polisher = _polisher()
    for value in (9.0, 8.0, 1.0, 1.0, 1.0, 1.0):
        assert polisher._accepted(torch.full((4,), value))
    assert not polisher._accepted(torch.full((4,), 1.5))


def test_what_was_taken_back_has_no_momentum() -> None:
    polisher = _polisher()
    assert polisher._accepted(torch.zeros(4))
    polisher.state["phi"][0].fill_(3.0)
    polisher.state["momentum"][0].fill_(2.0)
    assert not polisher._accepted(torch.ones(4))
    assert not polisher.state["phi"][0].any() and not polisher.state["momentum"][0].any()


def test_least_squares_are_kept_where_gradients_led_astray() -> None:
    for history, worse in (([3.0, 2.0, 1.0], False), ([1.0, 0.5, 2.0], True), ([1.0, 9.0, 0.9], False)):
        polisher = _polisher()
        polisher.losses = history
        assert polisher._worse() == worse
        polisher.iteration, polisher.fit.rows = 3, {1: torch.full((1,), 7.0)}
        polisher._weights = lambda phis: {}  # type: ignore[method-assign]
        assert (polisher(3) is polisher.fit.rows) == worse


def test_weights_are_the_mean_of_the_second_half_that_was_kept() -> None:
    polisher = _polisher()
    for iteration in range(6):
        polisher.state["kept"][0].fill_(float(iteration))
        polisher.state["phi"][0].fill_(100.0)  # where the next step leads has not been seen
        polisher._average(iteration, 6)
    assert polisher.state["average"][0].tolist() == [4.0] * 4


@pytest.mark.parametrize("error", [1e-4, 1.0])
def test_no_step_moves_latents_by_more_than_a_part_of_the_error(error: float) -> None:
    polisher = _polisher(width=3)
    polisher._step([torch.full((4,), 1e6)], [error], 0, 10)
    assert float(polisher.state["phi"][0].norm()) == pytest.approx(0.3 * (3 * error) ** 0.5, rel=1e-4)


def test_steps_shorten_in_the_second_half_and_after_a_refusal() -> None:
    lengths = []
    for iteration, scale in ((0, 1.0), (5, 1.0), (9, 1.0), (0, 0.5)):
        polisher = _polisher()
        polisher.scale = scale
        polisher._step([torch.full((4,), 1e-3)], [1.0], iteration, 10)
        lengths.append(float(polisher.state["phi"][0].norm()))
    assert [length / lengths[0] for length in lengths] == pytest.approx([1.0, 1.0, 0.2, 0.5])


def test_a_step_is_newtons() -> None:
    """The log of e^2 has the curvature 2 / (n e^2): the gradient times n e^2 / 2, and the rate."""
    polisher = _polisher(width=3)
    polisher._step([torch.full((4,), 1e-3)], [0.5], 0, 10)
    # the momentum's share of a first gradient
    expected = -0.2 * (1 - 0.7) * 1e-3 * 3 * 0.5 / 2
    assert polisher.state["phi"][0].tolist() == pytest.approx([expected] * 4)


def test_the_picture_counts_more_than_what_it_passes() -> None:
    ends = torch.tensor([[1.0], [3.0], [10.0]])
    assert float(loss(ends)) == pytest.approx(0.4 * 2.0 + 0.6 * 10.0)
    assert float(loss(ends[:1])) == 1.0


def test_every_sample_is_drawn_before_one_is_drawn_again() -> None:
    polisher = _polisher()
    polisher._units = [(0, 1), (2, 3), (4, 5), (6, 7)]
    polisher.size, polisher.seed = 4, 3
    drawn = [index for iteration in range(4) for index in polisher._drawn(iteration)]
    assert sorted(drawn[:8]) == sorted(drawn[8:]) == [*range(8)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_charged_with_what_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """Three full computations: of these, two are gone back through, and two computed again if nothing was kept."""

    class Fake:
        losses: tuple[float, ...] = ()

        def __init__(self, *_: Any, **__: Any):
            pass

        def __call__(self, iterations: int, advance: Any) -> dict[int, Tensor]:
            advance(8)
            return {}

        def saved(self) -> dict[str, Any]:
            return {}

    maker: Any = object.__new__(ProfileMaker)
    maker.config, maker.key, maker.samples = (
        settings(tmp_path, gradient_checkpointing=checkpointing),
        "key",
        [],
    )
    maker.plan = make_plan(8, [3], 100.0)
    maker.shards = None
    maker.ledger = Ledger(8, tmp_path / "ledger.json", torch.device("cpu"))
    spent: list[float] = []
    maker.advance = spent.append
    monkeypatch.setattr(profiles, "Polisher", Fake)
    maker._polished(Fit(Schedule("CFFCFFCF"), samples=torch.ones(1)))
    phase = maker.ledger.phases["gradients"]
    assert (phase.forwards, phase.backwards) == (8 * (5 if checkpointing else 3), 8 * 2)
    assert spent == [(phase.forwards + phase.backwards) / 8]


# single modules


def test_the_best_trial_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number, (quality, computed) in enumerate([(30.0, 5.0), (33.0, 7.0), (31.0, 6.0), (40.0, 7.5)]):
        distributions: Any = {"n": optuna.distributions.IntDistribution(0, 9)}
        study.add_trial(
            optuna.trial.create_trial(
                params={"n": number}, distributions=distributions, values=[quality, computed]
            )
        )
    monkeypatch.setattr(rfc, "suggest", lambda trial, steps, most: trial.suggest_int("n", 0, 9))
    monkeypatch.setattr(rfc, "_policy", lambda profile, scales: profile)
    scales: Any = None
    for budget, number in ((7.5, 3), (7.0, 1), (6.9, 2), (5.0, 0)):
        found = rfc._best(study, budget, scales, CalibrationConfig())
        policy: Any = found.policy
        assert (policy, found.source) == (number, f"trial {number}")
    with pytest.raises(PolicyError, match="no trial kept to 4 computations"):
        rfc._best(study, 4.0, scales, CalibrationConfig())
