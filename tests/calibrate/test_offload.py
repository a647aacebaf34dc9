"""Components that rest on the host while others compute: the same calibration as without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, UserCpuOffloadHook, add_hook_to_module  # type: ignore[import-untyped]
from diffusers.hooks import apply_group_offloading
from tests.calibrate.small import LABELS, pipeline, run, settings
from tests.calibrate.test_denoisers import prompts
from tests.experts import STEPS, tiny_wan

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.offload import is_streamed
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.fleet.recipe import frozen
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards
from cachesmith.calibrate.memory.choice import choose
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.policies import PolicyError
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

SCHEDULE = Schedule("CCFFFFCCFFCF", None, (0, 6))


class Away(ModelHook):  # type: ignore[misc]
    """Weights that are not on the device are not there at all."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, torch.Tensor]] = []
        self.times = 0

    def init_hook(self, module: Any) -> Any:
        if not self.kept:
            self.kept = [(each, each.data) for each in module.parameters()]
            for each, data in self.kept:
                each.data = torch.full_like(data, torch.nan)
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.times += bool(self.kept)
        for each, data in self.kept:
            each.data = data
        self.kept = []
        return args, kwargs


class Whole(Away):
    """As `enable_model_cpu_offload` has it: a component stays until another one comes."""

    def __init__(self) -> None:
        super().__init__()
        self.prev_module_hook: UserCpuOffloadHook | None = None

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        return super().pre_forward(module, *args, **kwargs)


class Streamed(Away):
    """A part is there for as long as it computes."""

    def post_forward(self, module: Any, output: Any) -> Any:
        self.init_hook(module)
        return output


def calibrated(folder: Path, pipe: Any, where: Placement) -> tuple[torch.Tensor, ...]:
    frozen(pipe)
    group = Group((0, 1), requests(prompts(2), 2, 7))
    shard = Shard(Renderer(pipe, STEPS, 2, guidance_scale=1.0), {0: group}, folder, where)
    shards = Shards([group], [InProcess(shard)], torch.device("cpu"))
    shards.references(lambda _: None)
    fit = SegmentFitter(shards, SCHEDULE, (24,), turns=1)()
    rows = Polisher(shards, fit, size=2, recomputed=where.recomputed)(2)
    return fit.samples, *rows.values()


@pytest.mark.parametrize("where", [Placement(), Placement(recomputed=True, graph_on_host=True)], ids=str)
def test_one_expert_at_a_time_is_on_the_device(tmp_path: Path, where: Placement) -> None:
    """Not even where a run is left early, or a backward pass comes from the second expert to the first."""
    whole = calibrated(tmp_path, tiny_wan(), where)
    pipe = tiny_wan()
    first, second = Whole(), Whole()
    add_hook_to_module(pipe.transformer, first)
    second.prev_module_hook = UserCpuOffloadHook(pipe.transformer, first)
    add_hook_to_module(pipe.transformer_2, second)
    parts = calibrated(tmp_path, pipe, where)
    assert first.times > 2 and second.times > 2 and bool(first.kept) != bool(second.kept)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def stream(transformer: Any) -> None:
    """Hooks at all parts of a transformer that have weights."""
    for name, child in transformer.named_children():
        for part in child if name == "blocks" else [child]:
            if [*part.parameters()]:
                add_hook_to_module(part, Streamed())


def test_gradients_need_no_weights_that_have_gone(tmp_path: Path) -> None:
    where = Placement(recomputed=True, graph_on_host=True)
    whole = calibrated(tmp_path, tiny_wan(), where)
    pipe = tiny_wan()
    for each in (pipe.transformer, pipe.transformer_2):
        stream(each)
        assert is_streamed(each)
    parts = calibrated(tmp_path, pipe, where)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    away = [m._hf_hook.kept for m in pipe.transformer.modules() if hasattr(m, "_hf_hook")]
    assert len(away) > 4 and all(away)
    with pytest.raises(PolicyError, match="leave out --no-gradient-checkpointing"):
        choose(pipe, (), CalibrationConfig(gradient_checkpointing=False), "")
    chosen = choose(pipe, (), CalibrationConfig(), "")
    assert chosen.recomputed and chosen.graph_on_host


def grouped(pipe: Any) -> None:
    """The model that is called `DiT` says that it does not; its blocks are like any."""
    places = torch.device("cpu"), torch.device("cpu")
    apply_group_offloading(pipe.transformer, *places, offload_type="block_level", num_blocks_per_group=1)


@pytest.mark.slow
@pytest.mark.parametrize("offload", [lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), grouped])
def test_diffusers_own_offloading_leaves_the_policy_as_it_is(tmp_path: Path, offload: Any) -> None:
    pipe = pipeline()
    offload(pipe)
    found = calibrate(pipe, LABELS, settings(tmp_path / "hooks")).policy
    plain = run(tmp_path / "plain", gradient_checkpointing=is_streamed(pipe.transformer))
    assert found.document.profiles == plain.document.profiles and not is_streamed(pipeline().transformer)
    assert all((found.arrays[name] == plain.arrays[name]).all() for name in plain.arrays)
