"""Two bundles, exported once: a DiT in two segments, and a FLUX as one unit with its natural border."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cachesmith.export import ExportConfig, Exported, export_bundle
from cachesmith.policies import Interval, Lagrange, Policy, Segments
from cachesmith.policies.bundle.manifest import Range
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux


class Shipped(NamedTuple):
    """What a user ships, and how to sample its model."""

    pipe: Pipeline
    policy: Policy
    folder: Path
    config: ExportConfig
    exported: Exported
    sample: Any


def dit_policy(gate: Any = None) -> Policy:
    return policy(Segments(starts=(0, 2)), gate or Interval(interval=3, warmup=2), Lagrange(order=1))


def flux_request(size: int = 16) -> dict[str, Any]:
    text = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(1, 3, 32, generator=text),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=text),
        "height": size,
        "width": size,
    }


DIT_CONFIG = ExportConfig(requests=({"class_labels": [1]},), steps=12, pictures=Range(min=1, opt=2, max=3))
FLUX_CONFIG = ExportConfig(
    requests=(flux_request(), flux_request(24)), steps=8, pictures=Range(min=1, opt=1, max=2)
)


@pytest.fixture(scope="session")
def dit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    pipe, made, folder = tiny_dit(), dit_policy(), tmp_path_factory.mktemp("dit") / "bundle"
    exported = export_bundle(pipe, made, folder, DIT_CONFIG)
    return Shipped(pipe, made, folder, DIT_CONFIG, exported, sample_dit)


@pytest.fixture(scope="session")
def flux_bundle(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    pipe, made, folder = tiny_flux(), policy(), tmp_path_factory.mktemp("flux") / "bundle"
    exported = export_bundle(pipe, made, folder, FLUX_CONFIG)
    return Shipped(pipe, made, folder, FLUX_CONFIG, exported, sample_flux)


@pytest.fixture
def dit() -> Pipeline:
    return tiny_dit()


@pytest.fixture
def flux() -> Pipeline:
    return tiny_flux()


@pytest.fixture(params=["dit", "flux"])
def shipped(request: pytest.FixtureRequest) -> Shipped:
    found: Shipped = request.getfixturevalue(f"{request.param}_bundle")
    return found
