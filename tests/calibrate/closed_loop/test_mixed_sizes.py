"""Requests of several sizes are fitted together, and each sample as if it were alone."""

from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_flux

from cachesmith.calibrate.closed_loop.axes import AXES
from cachesmith.calibrate.closed_loop.descent import Point
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.fleet.groups import request_groups
from cachesmith.calibrate.fleet.recipe import frozen
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

SIZES = ((16, 16), (32, 16), (16, 16), (32, 16), (16, 24))


def nobody(_: float) -> None:
    """Progress is not looked at."""


def test_samples_of_three_sizes_have_the_gradients_that_each_has_alone(tmp_path: Path) -> None:
    pipe, text = tiny_flux(), torch.Generator().manual_seed(0)
    frozen(pipe)
    prompts: list[Any] = [
        {"prompt_embeds": torch.randn(1, 3, 32, generator=text), "height": height, "width": width}
        | {"pooled_prompt_embeds": torch.randn(1, 32, generator=text)}
        for height, width in SIZES
    ]
    groups = request_groups(requests(prompts, len(prompts), 7), 4)
    assert [len(group.numbers) for group in groups] == [2, 2, 1]
    shard = Shard(Renderer(pipe, 6, 4), dict(enumerate(groups)), tmp_path)
    shards = Shards(groups, [InProcess(shard)], torch.device("cpu"))
    shards.references(nobody)
    assert len({sample.path.shape for sample in shard.samples.values()}) == 3
    fit = SegmentFitter(shards, Schedule("CCFFCF"), (32,), turns=1)()
    polisher = Polisher(shards, fit, size=8)
    rows = polisher(1)
    assert fit.samples.isfinite().all() and torch.tensor(polisher.losses).isfinite().all() and rows
    thetas = tuple(torch.zeros(1, AXES, 32) for _ in fit.curvatures)
    point = Point(fit.schedule, tuple(each.segment for each in fit.curvatures), fit.rows, thetas)
    together, ends = shards.gradients(range(5), point, nobody)
    for number in (0, 2, 4):
        alone, end = shards.gradients([number], point, nobody)
        assert torch.allclose(ends[:, number], end[:, 0], atol=1e-4)
        for whole, one in zip(together, alone, strict=True):
            assert whole[number].any() and torch.allclose(whole[number], one[0], rtol=1e-3, atol=1e-4)
