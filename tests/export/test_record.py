"""A part fed with what was recorded computes what was recorded, to the bit."""

from typing import Any

import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux

from cachesmith.export.parts import part_unit, plan_parts
from cachesmith.export.record import interface_of, record
from cachesmith.policies import Segments, preset
from cachesmith.runtime.models.engine_segment import FlatSegment


def replay(pipe: Pipeline, made: Any, sample: Any, blockwise: bool = False) -> int:
    parts = plan_parts(made, pipe.transformer, blockwise=blockwise)
    calls = record(pipe.transformer, pipe.scheduler, parts, sample)
    for part in parts:
        face = interface_of(pipe.transformer, part, calls[part.name])
        module = FlatSegment(part_unit(pipe.transformer, part).members, face)
        for call in calls[part.name]:
            with torch.no_grad():
                outputs = module(*(call.inputs[name] for name in module.interface.inputs))
            assert all(torch.equal(a, b) for a, b in zip(outputs, call.outputs, strict=True)), part.name
    assert {len(c) for c in calls.values()} == {len(calls[parts[0].name])}
    return len(calls[parts[0].name])


@pytest.mark.parametrize("starts", [(0,), (0, 1, 3)])
def test_segments(dit: Pipeline, flux: Pipeline, starts: tuple[int, ...]) -> None:
    made = policy(Segments(starts=starts))
    assert replay(dit, made, lambda: sample_dit(dit, steps=5)) == 5
    assert replay(flux, made, lambda: sample_flux(flux, steps=4, batch=2)) == 4


def test_sequential_guidance_is_two_calls_a_step(flux: Pipeline) -> None:
    assert replay(flux, policy(), lambda: sample_flux(flux, steps=4, true_cfg_scale=2.0)) == 8


def test_modules(dit: Pipeline, flux: Pipeline) -> None:
    replay(dit, preset("rfc"), lambda: sample_dit(dit, steps=3), blockwise=True)
    replay(flux, preset("rfc"), lambda: sample_flux(flux, steps=3), blockwise=True)


def test_recording_leaves_no_trace(dit: Pipeline) -> None:
    before = sample_dit(dit, steps=3)
    parts = plan_parts(policy(), dit.transformer)
    record(dit.transformer, dit.scheduler, parts, lambda: sample_dit(dit, steps=3))
    assert (sample_dit(dit, steps=3) == before).all()
    assert "forward" not in vars(dit.transformer.transformer_blocks[0])
