"""A network that diffusers does not know, `pip install --no-deps visage-image`: `make slow` installs it."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.tiny import policy
from torch import Tensor

from cachesmith.policies import Fixed, Segments, Stack, Taylor
from cachesmith.runtime import BlockList, adapter_for, apply
from cachesmith.zoo.tiny import fill_zeros

STEPS = 8


def visage_dit() -> Any:
    """The module of the network alone: the package around it wants more than torch."""
    package = importlib.util.find_spec("visage")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps visage-image")
    spec = importlib.util.spec_from_file_location("visage_dit", Path(package.origin).with_name("dit.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["visage_dit"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def tiny() -> Any:
    torch.manual_seed(0)
    module = visage_dit()
    model = module.VisageDiT(
        module.DiTConfig(image_size=8, in_channels=4, width=128, depth=4, text_dim=32)
    ).eval()
    fill_zeros(model)
    return model


def sample(model: Any, scheduler: Any) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.reshape(1, 1), text), t, x).prev_sample
    return x


@pytest.mark.slow
@pytest.mark.parametrize("units", [Stack(), Segments(starts=(0, 2))])
def test_its_blocks_are_found_in_its_first_call(units: Any) -> None:
    model, scheduler = tiny(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain = sample(model, scheduler)
    with apply(
        model, policy(units, Fixed(mask="C" * STEPS), Taylor(order=1)), scheduler=scheduler
    ) as session:
        assert torch.equal(sample(model, scheduler), plain)
    assert session.stats.nfc == STEPS and not session.stats.fallbacks
    assert adapter_for(model).lists == (BlockList("blocks", ("x",)),)
    model = tiny()
    with apply(model, policy(units, Fixed(mask="CCFFCFFF"), Taylor(order=1)), scheduler=scheduler) as session:
        forecast = sample(model, scheduler)
    assert session.stats.nfc == 3 and not session.stats.fallbacks
    assert forecast.isfinite().all() and not torch.equal(forecast, plain)
