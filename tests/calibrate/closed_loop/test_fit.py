"""Weights of a schedule: closer than lines on samples they never saw, in the runtime as in the fit."""

from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import STEPS, Flux, dit, shards, uncached

from cachesmith.calibrate.closed_loop.batch import Batch, sample
from cachesmith.calibrate.closed_loop.fit import Fit, SegmentFitter, _lowest
from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, line_weights, of_policy
from cachesmith.calibrate.closed_loop.polish import Polisher, _rose
from cachesmith.runtime import apply
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.requests import requests

CHANNELS = (32,)
MASK = Schedule("CFFCFFFCFF")
HALVES = Schedule("CFHFFCFHFF", "second")


def psnr_under(renderer: Any, schedule: Schedule, rows: Any) -> float:
    unseen = sample(renderer, requests([{"class_labels": 1}], 4, 900))
    with apply(renderer.pipe, as_policy(schedule, rows, "x")):
        images = renderer(unseen.requests).images
    return float(psnr(unseen.images, images).mean())


@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        (dit, HALVES),
        (Flux, MASK),
        (lambda: Flux(2.0), Schedule("CFHFFCFHFF", "later")),
    ],
    ids=["halves of a batch", "plain", "halves in calls"],
)
def test_fitted_weights_are_closer_than_lines_on_unseen_samples(make: Any, schedule: Schedule) -> None:
    renderer = make()
    computed: list[float] = []
    fit = SegmentFitter(shards(renderer, 2, 4), schedule, CHANNELS, advance=computed.append)()
    line = psnr_under(renderer, schedule, line_weights(schedule, *CHANNELS, torch.device("cpu")))
    fitted = psnr_under(renderer, schedule, fit.rows)
    assert fitted > line + 0.1
    assert abs(fitted - fit.psnr) < 6
    assert sum(computed) == 8 * (schedule.mask.count("C") + schedule.mask.count("H") / 2)


def test_folds_walk_on_together_or_apart() -> None:
    """By the weights of all samples; for an honest score, each fold by those that know nothing of it."""
    found: dict[bool, Fit] = {}
    for apart in (False, True):
        some = shards(dit(), 2, 3)
        found[apart] = SegmentFitter(
            some, Schedule("CFFCFFCFFF"), CHANNELS, turns=2, apart=apart, curved=not apart
        )()
    assert len(found[False].curvatures) == 3 and not found[True].curvatures
    first = min(found[False].rows)
    assert torch.equal(found[False].rows[first], found[True].rows[first])
    assert float(found[True].samples.mean()) < float(found[False].samples.mean())


def test_the_runtime_ends_where_the_fit_does() -> None:
    some = shards(dit(), 2, 3)
    fit = SegmentFitter(some, HALVES, CHANNELS)()
    found, nfc = some.quality(as_policy(HALVES, fit.rows, "x"))
    assert nfc == 3
    torch.testing.assert_close(found, fit.samples, rtol=0, atol=0.05)


def test_a_replay_goes_on_where_the_run_was() -> None:
    renderer = dit()
    known = uncached(renderer, 1, 3)[0]
    batch = Batch(renderer, known, Schedule("C" * STEPS), torch.zeros(3, dtype=torch.long))
    for step in range(STEPS):
        batch.compute(step, {})
    assert torch.allclose(batch.walk(4, {})[0], known.path[:, 4], atol=1e-5)
    assert psnr(known.images, batch.pictures().images).min() > 90


def test_a_fit_and_a_policy_survive_their_files() -> None:
    renderer = dit()
    fit = SegmentFitter(shards(renderer, 1, 2), HALVES, CHANNELS)()
    again = Fit.load(fit.saved())
    assert again.schedule == HALVES and torch.equal(again.samples, fit.samples)
    known = of_policy(as_policy(HALVES, fit.rows, "x"), "default")
    assert known is not None and known[0] == HALVES
    for step, rows in fit.rows.items():
        used = [lane for lane, letters in enumerate(HALVES.lanes) if letters[step] == "F"]
        assert torch.equal(known[1][step][used], rows[used])


def test_gradients_come_closer_and_an_interrupted_descent_goes_on() -> None:
    renderer = dit()
    samples = shards(renderer, 2, 4)
    fit = SegmentFitter(samples, MASK, CHANNELS)()
    whole = Polisher(samples, fit, size=4)
    rows = whole(6)
    assert sum(whole.losses[-2:]) < sum(whole.losses[:2])  # of the same samples
    assert any(not torch.equal(rows[step], fit.rows[step]) for step in rows)
    parts = Polisher(samples, fit, size=4)

    def interrupt(_: float) -> None:
        if parts.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts(6, interrupt)
    resumed = Polisher(samples, fit, size=4)
    resumed.load(parts.saved())
    again = resumed(6)
    assert all(torch.allclose(rows[step], again[step], atol=1e-6) for step in rows)


def test_gradients_that_lead_astray_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = dit()
    samples = shards(renderer, 2, 4)
    fit = SegmentFitter(samples, MASK, CHANNELS)()
    polisher, losses = Polisher(samples, fit, size=4), iter([0.0, 2.0, 2.0, 0.0, 0.0, 0.0])
    grads = [torch.ones_like(phi) for phi in polisher.state["phi"]]

    def gradients(numbers: Any, _: Any) -> Any:
        return grads, [1e-4] * len(grads), polisher._before[numbers] + next(losses)

    monkeypatch.setattr(polisher, "_gradients", gradients)
    polisher(3)
    assert polisher.scale == 0.25 and not any(phi.any() for phi in polisher.state["phi"])
    polisher(6)
    assert polisher.scale == 0.25 and all(phi.any() for phi in polisher.state["phi"])


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize(
    "errors", [[3, 2, 1, 2, 3], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [torch.inf, torch.inf, 2, 1, 3]]
)
def test_the_lowest_place_is_found_from_anywhere(errors: list[float], start: int) -> None:
    asked: list[int] = []

    def error(place: int) -> float:
        asked.append(place)
        return errors[place]

    assert _lowest(error, 5, start) == errors.index(min(errors))
    near = _lowest(error, 5, 4)
    asked.clear()
    assert _lowest(error, 5, near) == near and set(asked) <= {near - 1, near, near + 1}


def test_a_loss_that_stays_is_seldom_taken_for_a_rise_and_one_that_rises_is() -> None:
    drawn = torch.randn(2000, 5, 8, generator=torch.Generator().manual_seed(0))
    taken = [_rose(each[0], each[1:].mean(1).tolist()) for each in drawn]
    assert sum(taken) < 0.02 * len(taken)
    assert all(_rose(each[0] + 3, each[1:].mean(1).tolist()) for each in drawn[:50])
    assert _rose(torch.full((8,), torch.nan), [0.0]) and not _rose(torch.zeros(8), [])


def test_a_sample_asks_for_no_more_than_its_own_error() -> None:
    renderer = dit()
    samples = shards(renderer, 1, 2)
    polisher = Polisher(samples, SegmentFitter(samples, MASK, CHANNELS)())
    grads = torch.zeros(2, 3)
    grads[0, 0], grads[1, 1] = 1e6, 1e-3
    clipped = polisher._clipped(grads, torch.tensor([1e-4, 1e-4]).log())
    # at the end of a step along it, half of the error
    step = clipped[0].norm() * 1e-4 * polisher.fit.width / 2
    assert float(step) == pytest.approx(0.5 * (1e-4 * polisher.fit.width) ** 0.5, rel=1e-4)
    assert torch.equal(clipped[1], grads[1])
