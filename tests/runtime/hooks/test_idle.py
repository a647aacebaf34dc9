"""Lists that only the blocks read are passed by where all blocks are forecast, and nothing changes by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from tests.tiny import policy

from cachesmith.policies import Fixed, Policy, Relational, Segments, Stack, Taylor
from cachesmith.runtime import ADAPTERS, apply, register
from cachesmith.runtime.models import adapters
from cachesmith.zoo import ZOO

STEPS = 8
MASK = "CCFFCFFF"
IDLE = [
    pytest.param(name, marks=[pytest.mark.slow] * ZOO[name].heavy)
    for name, adapter in ADAPTERS.items()
    if adapter.idle and name in ZOO
]


def static(units: Any = None) -> Policy:
    return policy(units or Stack(), Fixed(mask=MASK), Taylor(order=1))


def sample(name: str, model: Any, chosen: Policy, change: int | None = None) -> tuple[torch.Tensor, Any]:
    """Sample; from step `change` on, two samples instead of one."""
    tiny, scheduler = ZOO[name], diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    x = tiny.noise()
    with torch.no_grad(), apply(model, chosen, scheduler=scheduler) as session:
        for step, t in enumerate(scheduler.timesteps):
            if step == change:
                x = x[..., : x.shape[-1] // 2]
            x = scheduler.step(tiny.velocity(model, x, t), t, x).prev_sample
    return x, session.stats


def counted(model: Any, adapter: Any) -> list[int]:
    """Calls of the blocks of idle lists that may be passed by; told by something inside them."""
    calls = [0]
    for idle in adapter.idle:
        blocks = [*model.get_submodule(idle.path).children()]
        for block in blocks[: len(blocks) - idle.kept]:
            inner = next(m for m in block.modules() if isinstance(m, torch.nn.Linear))
            inner.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


@contextmanager
def without_idle(name: str) -> Iterator[None]:
    register(name, replace(ADAPTERS[name], idle=()))
    try:
        yield
    finally:
        del adapters._REGISTERED[name]


@pytest.mark.parametrize("name", IDLE)
def test_passed_by_on_forecast_steps_and_equal_to_the_bit(name: str) -> None:
    model = ZOO[name].build(name)
    with without_idle(name):
        expected, _ = sample(name, model, static())
    calls = counted(model, ADAPTERS[name])
    found, stats = sample(name, model, static())
    blocks = sum(
        len([*model.get_submodule(idle.path).children()]) - idle.kept for idle in ADAPTERS[name].idle
    )
    assert torch.equal(found, expected) and not stats.fallbacks
    assert calls[0] == MASK.count("C") * blocks > 0


@pytest.mark.parametrize(
    "chosen", [policy(Stack(), Relational(thresholds=(10.0,))), static(Segments(starts=(0, -1)))]
)
def test_parts_of_the_blocks_and_gates_that_decide_while_sampling_have_them_computed(chosen: Policy) -> None:
    name = "WanVACETransformer3DModel"
    model = ZOO[name].build(name)
    calls = counted(model, ADAPTERS[name])
    _, stats = sample(name, model, chosen)
    assert stats.forecast and calls[0] == STEPS * 2


def test_what_was_foreseen_otherwise_is_computed_with_them() -> None:
    """The size changes at a step that was to be forecast: the call is computed, refiners and all."""
    name = "HunyuanVideoTransformer3DModel"
    model = ZOO[name].build(name)
    with without_idle(name), pytest.warns(RuntimeWarning, match="changed during a run"):
        expected, other = sample(name, model, static(), change=3)
    with pytest.warns(RuntimeWarning, match="changed during a run"):
        found, stats = sample(name, model, static(), change=3)
    assert torch.equal(found, expected)
    assert stats.computed == other.computed and stats.fallbacks == other.fallbacks


def test_a_model_without_such_lists_is_called_once_a_step() -> None:
    name = "WanTransformer3DModel"
    model, calls = ZOO[name].build(name), [0]
    model.proj_out.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    assert not ADAPTERS[name].idle
    with pytest.warns(RuntimeWarning, match="changed during a run"):
        sample(name, model, static(), change=3)
    assert calls[0] == STEPS


def test_a_call_that_is_made_again_is_handed_out_whatever_its_output_is() -> None:
    name = "HunyuanVideoTransformer3DModel"
    model = ZOO[name].build(name)
    with without_idle(name), pytest.warns(RuntimeWarning, match="changed during a run"):
        expected, _ = sample(name, model, static(), change=3)
    plain = model.forward
    model.forward = lambda *args, **kwargs: SimpleNamespace(of=plain(*args, **kwargs))
    tiny = ZOO[name]
    unpacked = replace(tiny, call=lambda model, x, t: tiny.call(model, x, t).of)
    with pytest.MonkeyPatch.context() as patch, pytest.warns(RuntimeWarning, match="changed during a run"):
        patch.setitem(ZOO, name, unpacked)
        found, _ = sample(name, model, static(), change=3)
    assert torch.equal(found, expected)
