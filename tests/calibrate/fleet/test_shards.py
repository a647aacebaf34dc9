"""Whoever has the samples: the same sums, the same weights, in the same order."""

from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import Flux, dit, shards

from cachesmith.calibrate.closed_loop.axes import AXES, segments
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.closed_loop.walk import Start
from cachesmith.calibrate.fleet.groups import at_least, cut, draws, request_groups, shared_out
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.sampling.requests import requests

CHANNELS = 32
HALVES = Schedule("CFHFFCFHFF", "second")


def equations_of(some: Shards, share: float) -> Any:
    """Of the second segment that forecasts a whole step, for weights that differ from fold to fold."""
    theta = 0.05 * torch.randn(3, 2, AXES, CHANNELS, generator=torch.Generator().manual_seed(1))
    some.begin(Start(HALVES, (CHANNELS,), 3), torch.arange(6) % 3)
    first, second, *_ = segments(HALVES.mask)
    for segment in (first, second):
        some.compute(segment.start, lambda _: None)
        squares = some.go(segment, theta)
        if segment is first:
            some.settle()
    return some.equations(second, theta, 1 + torch.arange(6.0), share), squares


@pytest.mark.parametrize(("batches", "workers", "within"), [(6, 4, 1e-6), (2, 2, 1e-5)])
def test_sums_over_shards_are_those_of_one_process(batches: int, workers: int, within: float) -> None:
    """Where calls hold the same samples; where they hold others, products of matrices round in another way."""
    one, squares = equations_of(shards(dit(), batches, 6 // batches), 0.4)
    several, again = equations_of(shards(dit(), batches, 6 // batches, workers), 0.4)
    torch.testing.assert_close(again, squares, rtol=100 * within, atol=1e-7)
    (one,), (several,) = one.parts, several.parts
    assert one.count == several.count and one.tokens == several.tokens
    for name in ("gram", "right", "energy"):
        expected, found = getattr(one, name), getattr(several, name)
        assert expected.any() and float((found - expected).norm() / expected.norm()) < within, name


def test_weights_and_gradients_are_those_of_one_process() -> None:
    found = []
    for workers in (1, 2):
        some = shards(Flux(), 2, 2, workers)
        counted: list[float] = []
        fit = SegmentFitter(some, Schedule("CFFFCFFFFF"), (CHANNELS,), turns=1, advance=counted.append)()
        polisher = Polisher(some, fit, size=2)
        rows = polisher(2, counted.append)
        nfc = some.quality(as_policy(fit.schedule, rows, "x"))[1]
        found.append((fit.samples, torch.tensor(polisher.losses), rows, sum(counted), nfc))
    one, two = found
    assert one[3:] == two[3:] == (4 * 2 + 2 * 2, 2)
    torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(one[1], two[1], rtol=1e-4, atol=1e-5)
    for step, row in one[2].items():
        torch.testing.assert_close(row, two[2][step], rtol=1e-3, atol=1e-4)


def test_every_sample_is_with_one_worker_and_each_has_as_many() -> None:
    wanted = requests([{"class_labels": label} for label in range(3)], 13, 0)
    groups = request_groups(wanted, 5)
    assert [len(group.numbers) for group in groups] == [5, 5, 3]
    for workers in (1, 2, 4, 13, 20):
        shares = shared_out(groups, workers)
        held = [sorted(n for group in share.values() for n in group.numbers) for share in shares]
        assert sorted(n for each in held for n in each) == [*range(13)]
        assert max(map(len, held)) - min(map(len, held)) <= 1
    assert shared_out(groups, 1)[0] == dict(enumerate(groups))
    assert at_least(groups, 6) == [0, 1] and at_least(groups, 5) == [0]


def test_a_samples_number_does_not_depend_on_the_batch() -> None:
    sizes: list[Any] = [{"prompt": "a", "height": 8 * (1 + n % 2)} for n in range(6)]
    wanted = requests(sizes, 6, 0)
    made = [request_groups(wanted, batch) for batch in (1, 2, 4, 6)]
    orders = [[r for group in groups for r in group.requests] for groups in made]
    assert all(order == orders[0] for order in orders)
    assert all([n for group in groups for n in group.numbers] == [*range(6)] for groups in made)


@pytest.mark.parametrize(("count", "batch"), [(40, 8), (20, 8), (20, 40), (3, 8), (40, 3)])
def test_gradients_draw_no_more_than_their_size_and_no_sample_twice(count: int, batch: int) -> None:
    units = cut(request_groups(requests([{"class_labels": 1}], count, 0), batch), 8)
    left: set[int] = set()
    for _, drawn in zip(range(30), draws(units, 8, 0), strict=False):
        left = left or {*range(count)}
        assert 0 < len(drawn) <= 8 and len({*drawn}) == len(drawn) and left >= {*drawn}
        left -= {*drawn}
