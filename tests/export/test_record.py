"""A part fed with what was recorded computes what was recorded, to the bit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux
from torch import Tensor

from cachesmith.export.config import ExportConfig
from cachesmith.export.job import Job, record_parts
from cachesmith.export.parts import Part, part_unit, plan_parts
from cachesmith.export.record import check_alike, check_shared, interface_of, record
from cachesmith.policies import EngineError, Segments, preset
from cachesmith.runtime.models.engine_segment import FlatSegment
from cachesmith.zoo import ZOO
from cachesmith.zoo.survey import TIME


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
    before, during = sample_dit(dit, steps=3), []
    parts = plan_parts(policy(), dit.transformer)
    recorded = record(dit.transformer, dit.scheduler, parts, lambda: during.append(sample_dit(dit, steps=3)))
    assert (during[0] == before).all() and (sample_dit(dit, steps=3) == before).all()
    assert [sample.step for sample in recorded[parts[0].name]] == [0, 1, 2]
    assert "forward" not in vars(dit.transformer.transformer_blocks[0])


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed")  # diffusers' own
def test_blocks_that_are_each_given_something_else_are_refused() -> None:
    """Chroma has a modulation for every block; an engine that used the first one's would be silently wrong."""
    name = "ChromaTransformer2DModel"
    tiny = ZOO[name]
    model = tiny.build(name)
    parts = (Part(0, 2, 0), Part(2, 4, 0))
    recorded = record(model, None, parts, lambda: tiny.call(model, tiny.noise(), TIME))
    with pytest.raises(EngineError, match="not all blocks are given the same `temb`"):
        check_shared(parts[0], interface_of(model, parts[0], recorded[parts[0].name]))
    singles = (Part(0, 1, 0), Part(2, 3, 0))
    recorded = record(model, None, singles, lambda: tiny.call(model, tiny.noise(), TIME))
    check_shared(singles[0], interface_of(model, singles[0], recorded[singles[0].name]))
    with pytest.raises(EngineError, match=r"not all blocks are given the same `temb` \(see blocks-002-003\)"):
        check_alike(recorded, singles)


def test_numbers_are_part_of_the_graph() -> None:
    """Sana's blocks are told height and width."""
    name = "SanaTransformer2DModel"
    tiny = ZOO[name]
    model = tiny.build(name)
    part = Part(0, 3, 0)
    (samples,) = record(model, None, (part,), lambda: tiny.call(model, tiny.noise(), TIME)).values()
    face = interface_of(model, part, samples)
    assert face.constants == {"height": 8, "width": 8} and face.axes["hidden_states"] == ("batch", 64, 32)


class Taking:
    """A pipeline that notes what it is called with; it takes tuples alone, and computes in bfloat16."""

    def __init__(self) -> None:
        self.transformer, self.scheduler = SimpleNamespace(dtype=torch.bfloat16), None
        self.device, self.given = torch.device("cpu"), dict[str, Any]()

    def __call__(self, prompt_embeds: Tensor, original_size: tuple[int, int], **options: Any) -> None:
        self.given = {"prompt_embeds": prompt_embeds, "original_size": original_size}


def test_requests_are_given_as_a_renderer_gives_them() -> None:
    pipe = Taking()
    config = ExportConfig(
        requests=({"prompt_embeds": torch.zeros(1, 3), "original_size": [16, 16]},), steps=2
    )
    record_parts(Job(pipe, policy(), config, {}, None, "bfloat16"), (Part(0, 1, 0),), lambda *_: None)
    assert pipe.given["original_size"] == (16, 16) and pipe.given["prompt_embeds"].dtype == torch.bfloat16
