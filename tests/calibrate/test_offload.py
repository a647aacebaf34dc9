"""Components that rest on the host while others compute: the same calibration as without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, UserCpuOffloadHook, add_hook_to_module  # type: ignore[import-untyped]
from tests.calibrate.test_denoisers import prompts
from tests.experts import STEPS, tiny_wan

from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.fleet.recipe import frozen
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

SCHEDULE = Schedule("CCFFFFCCFFCF", None, (0, 6))


class Away(ModelHook):  # type: ignore[misc]
    """Weights that are not on the device are not there at all."""

    def __init__(self, previous: UserCpuOffloadHook | None = None):
        self.prev_module_hook = previous
        self.kept: list[tuple[Any, torch.Tensor]] = []
        self.times = 0

    def init_hook(self, module: Any) -> Any:
        if not self.kept:
            self.kept = [(each, each.data) for each in module.parameters()]
            for each, data in self.kept:
                each.data = torch.full_like(data, torch.nan)
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        self.times += bool(self.kept)
        for each, data in self.kept:
            each.data = data
        self.kept = []
        return args, kwargs


def calibrated(folder: Path, pipe: Any, where: Placement) -> tuple[torch.Tensor, ...]:
    frozen(pipe)
    group = Group((0, 1), requests(prompts(2), 2, 7))
    shard = Shard(Renderer(pipe, STEPS, 2, guidance_scale=1.0), {0: group}, folder, where)
    shards = Shards([group], [InProcess(shard)], torch.device("cpu"))
    shards.references(lambda _: None)
    fit = SegmentFitter(shards, SCHEDULE, 24, turns=1)()
    rows = Polisher(shards, fit, size=2, recomputed=where.recomputed)(2)
    return fit.samples, *rows.values()


@pytest.mark.parametrize("where", [Placement(), Placement(recomputed=True, graph_on_host=True)], ids=str)
def test_one_expert_at_a_time_is_on_the_device(tmp_path: Path, where: Placement) -> None:
    """Not even where a run is left early, or a backward pass comes from the second expert to the first."""
    whole = calibrated(tmp_path, tiny_wan(), where)
    pipe = tiny_wan()
    first, second = Away(), Away()
    add_hook_to_module(pipe.transformer, first)
    second.prev_module_hook = UserCpuOffloadHook(pipe.transformer, first)
    add_hook_to_module(pipe.transformer_2, second)
    parts = calibrated(tmp_path, pipe, where)
    assert first.times > 2 and second.times > 2 and bool(first.kept) != bool(second.kept)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
