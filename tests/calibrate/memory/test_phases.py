"""Bytes told in advance are the bytes that are there: every phase of a small calibration, counted by tensor."""

import gc
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from tests.calibrate.closed_loop.world import STEPS, shards
from tests.tiny import tiny_vae
from torch.testing._internal.two_tensor import TwoTensor

from cachesmith.calibrate.closed_loop import host
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule, line_weights
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.cost.plan import BudgetPlan
from cachesmith.calibrate.memory.live_bytes import LiveBytes, module_bytes
from cachesmith.calibrate.memory.phases import phases, placed
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.memory.sizes import Kept, Sizes, Width, sizes_of
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

SAMPLES = 4

WAYS = {
    "gradients": Placement(4, 4),
    "gradients again": Placement(4, 4, recomputed=True),
    "gradients from the host": Placement(4, 4, recomputed=True, graph_on_host=True),
}


class Elsewhere(host.Waiting):
    """A tensor that waits where nobody counts it: what is counted then is the device's part."""

    def __init__(self, tensor: torch.Tensor):
        self._array = tensor.detach().numpy().copy()

    def __call__(self) -> torch.Tensor:
        return torch.from_numpy(self._array)


def renderer() -> Renderer:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=6, sample_size=16,
        norm_num_groups=2,
    )  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer.eval(), tiny_vae().eval(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for part in (transformer, pipe.vae):
        part.requires_grad_(False)
    return Renderer(pipe, STEPS, SAMPLES, guidance_scale=1.5)


def plan(samples: int = SAMPLES) -> BudgetPlan:
    return BudgetPlan(STEPS, samples, samples, 1, 1, samples, ())


@pytest.mark.parametrize("mask", ["CFFFFCFFFF", "CFCFCFFFFF"])
def test_bytes_announced_are_bytes_held(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, device and host are one."""
    monkeypatch.setattr(host, "SMALL", 0)
    monkeypatch.setattr(host, "Waiting", Elsewhere)
    drawn, schedule = renderer(), Schedule(mask)
    sizes = sizes_of(drawn, requests([{"class_labels": 1}], 1, 0)[0])
    measured: dict[str, int] = {}
    with LiveBytes() as mode:
        samples = shards(drawn, 1, SAMPLES)
        shard: Any = samples.workers[0]
        shard = shard._shard
        measured["references"] = mode.peak
        gc.collect()
        mode.restart()
        # all tokens are looked at, as in every turn but the first
        rows = line_weights(schedule, 32, torch.device("cpu"))
        fit = SegmentFitter(samples, schedule, (32,), start=rows, hold=True)()
        measured["least squares"] = mode.peak
        for name, shard.where in WAYS.items():
            gc.collect()
            mode.restart()
            Polisher(samples, fit, size=SAMPLES, recomputed=shard.where.recomputed)(1)
            measured[name] = mode.peak
    told: dict[str, int] = {}
    for name, where in reversed(WAYS.items()):
        whole = replace(where, graph_on_host=False)
        for phase, other in zip(
            *(phases(sizes, plan(), [mask], each) for each in (where, whole)), strict=True
        ):
            told[name if phase.name == "gradients" else phase.name] = phase.device + other.host
    for name, found in measured.items():
        assert told[name] - sum(sizes.weights.values()) == pytest.approx(found, rel=0.1), name
    on_host = [phases(sizes, plan(), [mask], each)[2].host for each in (*WAYS.values(),)]
    assert on_host[2] > on_host[1] == on_host[0]


KEPT = Kept(10, 1000, 200)
SIZES = Sizes(
    {"transformer": 5000, "vae": 100},
    10,
    10,
    10,
    64,
    KEPT,
    Kept(10, 100, 300),
    20,
    50,
    10,
    (Width(16, 2),),
    1,
)


def test_what_is_placed_fits_and_gives_up_the_cheapest_first() -> None:
    masks, wanted = ["CFCFCFFFFF"], Placement(8, 8)

    before = wanted
    for free in range(60_000, 8_000, -1000):
        found = placed(SIZES, plan(40), masks, free, wanted)
        over = {each.name for each in phases(SIZES, plan(40), masks, found) if each.device > free}
        assert not over or (found.batch, found.history) == (1, False)
        last = Placement(1, 1, history=False, recomputed=True, graph_on_host=True)
        assert "gradients" not in over or found == last
        assert found.recomputed >= before.recomputed and found.graph_on_host >= before.graph_on_host
        assert found.batch <= before.batch
        before = found
    assert placed(SIZES, plan(40), masks, 10**9, wanted) == wanted


def test_a_tensor_made_of_others_is_as_large_as_these() -> None:
    """As quantised weights are."""
    weight = TwoTensor(torch.zeros(8, dtype=torch.int8), torch.zeros(8, dtype=torch.int8))  # type: ignore[no-untyped-call]
    module = torch.nn.Module()
    module.register_buffer("weight", weight)
    assert module_bytes(module) == 16


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    with LiveBytes() as mode:
        one = torch.zeros(256)
        view: Any = one[:3].view(3)
        assert mode.live == 1024
        two = one + 1
        assert (mode.live, mode.peak) == (2048, 2048)
        del one, view
        assert mode.live == 1024
        mode.restart()
        assert mode.peak == 1024 and len(two) == 256
