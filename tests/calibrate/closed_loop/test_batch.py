"""A batch in memory: where it rests, in what dtype, and cut into smaller ones."""

from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import Flux, dit, uncached
from tests.pipelines import PIPELINES, TinyPipeline
from tests.pipelines.latest import GLM_EDIT

from cachesmith.calibrate.closed_loop import replay
from cachesmith.calibrate.closed_loop.batch import Batch, _narrowed, sample
from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, line_weights
from cachesmith.calibrate.probe import probe
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

MASK = Schedule("CFCFFFCFFF")
HALVES = Schedule("CCFHFFCFFF", "second")


def test_parts_of_a_batch_go_on_where_it_was() -> None:
    for renderer, schedule in ((dit(), HALVES), (dit(), MASK)):
        known = uncached(renderer, 1, 3)[0]
        base = line_weights(schedule, 32, torch.device("cpu"))
        whole = Batch(renderer, known, schedule, torch.tensor([0, 1, 2]))
        whole.compute(0, base)
        whole.known = whole.walk(1, base)[1]
        parts = whole.parts(2)
        assert [each.folds.tolist() for each in parts] == [[0, 1], [2]] and whole.parts(3) == [whole]
        for each in (whole, *parts):
            for step in (s for s in range(1, 5) if schedule.mask[s] != "F"):
                each.known = each.walk(step, base)[1]
                each.compute(step, base)
        ends = torch.cat([each.walk(6, base)[0] for each in parts])
        torch.testing.assert_close(ends, whole.walk(6, base)[0], rtol=1e-4, atol=1e-5)


def test_what_a_run_returned_is_not_what_the_pipeline_may_write_into() -> None:
    renderer = dit()
    batch = Batch(renderer, uncached(renderer, 1, 2)[0], MASK, torch.tensor([0, 1]))
    batch.compute(0, {})
    before = batch.known[0][0][0].clone()
    _, results = batch.walk(2, line_weights(MASK, 32, torch.device("cpu")))
    assert torch.equal(before, results[0][0][0])
    again = batch.walk(2, line_weights(MASK, 32, torch.device("cpu")))[1]
    assert torch.equal(results[1][0][0], again[1][0][0])


def test_where_a_pipeline_computes_is_asked_once_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """It walks all modules: asked in every answered call, it takes more time than the small models do."""
    renderer, base = dit(), line_weights(MASK, 32, torch.device("cpu"))
    batch = Batch(renderer, uncached(renderer, 1, 2)[0], MASK, torch.tensor([0, 1]))
    batch.compute(0, base)
    batch.known = batch.walk(6, base)[1]
    asked: list[Any] = []

    def device_of(pipe: Any) -> torch.device:
        asked.append(pipe)
        return torch.device("cpu")

    monkeypatch.setattr(replay, "device_of", device_of)
    batch.walk(6, base)
    assert len(batch.known) > 4 and len(asked) == 1


def test_a_graph_keeps_no_widened_taps() -> None:
    """In bfloat16 a forecast's graph holds the taps that are there anyway, and no copies in float32."""
    renderer = Flux()
    renderer.pipe.to(torch.bfloat16)
    batch = Batch(renderer, uncached(renderer, 1, 1)[0], MASK, torch.tensor([0]))
    rows = {step: row.requires_grad_() for step, row in line_weights(MASK, 32, torch.device("cpu")).items()}
    batch.compute(0, rows)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, notes = batch.differentiable(2, rows)
    (tap,) = next(iter(batch.past.known.values()))[0][1]
    assert tap.dtype == torch.bfloat16 and notes
    widened = [each for each in kept if each.dtype == torch.float32 and each.shape == tap.shape]
    assert not any(torch.equal(each, tap.float()) for each in widened)


def test_references_are_kept_in_the_dtype_that_they_have() -> None:
    renderer = dit()
    renderer.pipe.to(torch.bfloat16)
    found = sample(renderer, requests([{"class_labels": 1}], 2, 0))
    assert found.images.dtype == torch.bfloat16
    fine = torch.rand(2, 3, 4, 4)
    assert _narrowed(fine, torch.bfloat16) is fine


@pytest.mark.parametrize("tiny", [PIPELINES["QwenImage21Pipeline"], GLM_EDIT])
def test_what_calls_leave_in_a_cache_is_there_in_every_replay(tiny: TinyPipeline) -> None:
    """A replayed run, and one under its weights, draw the same."""
    renderer, asked = Renderer(tiny.pipe(), tiny.steps, 1), requests([tiny.request(0)], 1, 3)
    shape = probe(renderer, asked)
    schedule, channels = Schedule("CCFFCFFF", None, shape.starts), shape.channels
    rows = line_weights(schedule, sum(channels), torch.device("cpu"))
    batch = Batch(renderer, sample(renderer, asked), schedule, torch.tensor([0]))
    for step, letter in enumerate(schedule.mask):
        if letter == "C":
            batch.compute(step, rows)
        batch.known = batch.walk(step + 1, rows)[1]
    with apply(renderer.pipe, as_policy(schedule, rows, "x", shape.denoisers, channels)):
        drawn = renderer(asked).images
    assert torch.allclose(batch.pictures().images, drawn, atol=1e-4)
    assert not torch.allclose(drawn, batch.uncached.images, atol=1e-4)
