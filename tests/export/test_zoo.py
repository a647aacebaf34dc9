"""Every class that torch can export becomes graphs that agree with torch in ONNX Runtime, at every recorded step."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from cachesmith.export import ExportConfig
from cachesmith.export.parity import judge
from cachesmith.export.parts import Part, natural_borders, part_unit
from cachesmith.export.prove import prove
from cachesmith.export.record import interface_of, record
from cachesmith.export.shapes import axis_ranges, specs
from cachesmith.export.to_onnx import write_onnx
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import SegmentEntry
from cachesmith.runtime import learn
from cachesmith.runtime.models.adapters import adapter_for, known_adapter
from cachesmith.runtime.models.units import block_lists
from cachesmith.zoo import NO_ROW, ZOO
from cachesmith.zoo.survey import TIME

STEPS = 3
REFUSED: dict[str, str] = {
    "AnyFlowFARTransformer3DModel": "given a BlockMask",
    "Cosmos3OmniTransformer": "streams without an axis of samples",
    "ErnieImageTransformer2DModel": "streams with tokens before samples",
    "HiDreamImageTransformer2DModel": "experts are called as often as tokens choose them",
    "Kandinsky6SRTransformer3DModel": "attention is compiled for a block mask",
    "Lumina2Transformer2DModel": "ONNX has no cast of complex numbers",
    "MochiTransformer3DModel": "attention picks tokens by the values of a mask",
    "SanaWMTransformer3DModel": "given `mask` as int16",
    "WanAnimate2Transformer3DModel": "given a WanAnimate2KVLayerCache",
}
"""Why no graph or engine can be made: most often what the blocks are given."""
QUICK = (
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
    "AuraFlowTransformer2DModel",
)
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name in ZOO
    if name not in NO_ROW and name not in REFUSED
]
ONE = ExportConfig(requests=({"class_labels": [1]},))


def parts_of(model: Any) -> list[Part]:
    """One part for each list; of a single block where the transformer does something in between."""
    adapter, count = adapter_for(model), len(block_lists(model))
    edges = [0, *natural_borders(model), count]
    alone = adapter.works or adapter.skips
    return [Part(a, a + 1 if alone else b, 0) for a, b in pairwise(edges)]


def exported(model: Any, part: Part, samples: Any, folder: Path) -> float:
    """Return the largest relative error over all recorded steps."""
    face = interface_of(model, part, samples)
    specs(face, samples[0])
    path = folder / f"{part.name}.onnx"
    face = write_onnx(part_unit(model, part).members, face, samples, path, 20)
    inputs, outputs = specs(face, samples[0])
    weights = path.with_name(f"{path.name}.data")
    entry = SegmentEntry(
        name=part.name, start=part.start, stop=part.stop, inputs=inputs, outputs=outputs,
        ranges=axis_ranges(face, inputs, samples, ONE), key="0" * 64, onnx=describe_file(path),
        data=describe_file(weights) if weights.exists() else None, constants=face.constants,
    )  # fmt: skip
    return judge(part.name, prove(entry, samples, folder), 1e-4).error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_hold_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        _check(name, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_graphs_agree_with_torch(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


def _check(name: str, tmp_path: Path) -> None:
    tiny, scheduler = ZOO[name], diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = tiny.build(name)
    if known_adapter(model) is None:
        learn(model, lambda: tiny.call(model, tiny.noise(), TIME))

    def sample() -> None:
        scheduler.set_timesteps(STEPS)
        x = tiny.noise()
        for t in scheduler.timesteps:
            x = scheduler.step(tiny.velocity(model, x, t), t, x).prev_sample

    parts = parts_of(model)
    recorded = record(model, scheduler, tuple(parts), sample)
    for part in parts:
        samples = recorded[part.name]
        assert [s.step for s in samples] == list(range(STEPS))
        assert exported(model, part, samples, tmp_path) < 1e-4
    torch._dynamo.reset()
