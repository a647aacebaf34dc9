"""A bundle of both of Wan 2.2's experts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.experts import STEPS, sample, tiny_wan, two_experts
from tests.tiny import Pipeline, policy

from cachesmith.export import ExportConfig, export_bundle
from cachesmith.policies import EngineError, Policy, Taylor
from cachesmith.policies.bundle.files import verify
from cachesmith.policies.bundle.manifest import Manifest, Range, bundle_id, encode_manifest, read_manifest
from cachesmith.runtime import apply

EMBEDS = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(5))
CONFIG = ExportConfig(
    requests=(
        {
            "prompt_embeds": EMBEDS,
            "negative_prompt_embeds": -EMBEDS,
            "height": 16,
            "width": 16,
            "num_frames": 5,
            "guidance_scale": 4.0,
            "output_type": "latent",
        },
    ),
    steps=STEPS,
    pictures=Range(min=1, opt=1, max=2),
)


class Made(NamedTuple):
    pipe: Pipeline
    policy: Policy
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    pipe, folder = tiny_wan(), tmp_path_factory.mktemp("wan") / "bundle"
    both = two_experts(pipe, Taylor(order=1))
    yield Made(pipe, both, folder, export_bundle(pipe, both, folder, CONFIG).manifest)


def test_both_experts_have_segments(made: Made) -> None:
    names = [(segment.denoiser, segment.name) for segment in made.manifest.segments]
    assert names == [
        ("transformer", "blocks-000-002"),
        ("transformer_2", "transformer_2.blocks-000-002"),
    ]
    assert made.manifest.models["transformer_2"].weights_hash != made.manifest.model.weights_hash
    verify(made.folder, read_manifest(made.folder))


def test_engines_paint_what_torch_paints(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with apply(made.pipe, made.policy):
        expected = sample(made.pipe)
    for expert in (made.pipe.transformer, made.pipe.transformer_2):
        for block in expert.blocks:
            monkeypatch.setattr(block, "forward", _never)
    with apply(made.pipe, made.policy, bundle=made.folder) as session:
        got = sample(made.pipe)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert session.stats.nfc == 5 and not session.stats.fallbacks


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("torch computed a block")


def test_an_expert_whose_weights_changed_is_refused(made: Made) -> None:
    pipe = tiny_wan()
    torch.nn.init.normal_(pipe.transformer_2.blocks[0].attn1.to_q.weight)
    both = two_experts(pipe, Taylor(order=1))
    with (
        pytest.raises(EngineError, match="the weights differ from those in the engines"),
        apply(pipe, both, bundle=made.folder),
    ):
        pass


def test_an_expert_without_engines_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    lone = tiny_wan()
    lone.transformer_2 = None
    lone.register_to_config(boundary_ratio=None)
    folder, reusing = tmp_path / "bundle", policy()
    export_bundle(lone, reusing, folder, CONFIG)
    with (
        pytest.raises(EngineError, match="has no engines of transformer_2"),
        apply(made.pipe, reusing, bundle=folder),
    ):
        pass


def test_a_second_export_makes_only_the_expert_that_changed(made: Made) -> None:
    pipe = tiny_wan()
    assert export_bundle(pipe, made.policy, made.folder, CONFIG).graphs == 0
    torch.nn.init.normal_(pipe.transformer_2.blocks[0].attn1.to_q.weight)
    changed = export_bundle(pipe, two_experts(pipe, Taylor(order=1)), made.folder, CONFIG)
    assert changed.graphs == 1 and changed.manifest.segments[0].key == made.manifest.segments[0].key
    verify(made.folder, read_manifest(made.folder))
    assert len([*made.folder.glob("transformer_2.*.onnx")]) == 1
    export_bundle(tiny_wan(), made.policy, made.folder, CONFIG)


def test_a_manifest_of_one_denoiser_says_nothing_of_others(made: Made) -> None:
    first = made.manifest.segments[:1]
    alone = made.manifest.model_copy(update={"models": {}, "segments": first})
    written = encode_manifest(alone).decode()
    assert '"models"' not in written and '"denoiser"' not in written
    assert bundle_id(Manifest.model_validate_json(written)) == bundle_id(alone)
    with pytest.raises(ValueError, match="a segment is of transformer_2, which no model is given for"):
        Manifest.model_validate(made.manifest.model_dump() | {"models": {}})
