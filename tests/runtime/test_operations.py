"""What a step costs an accelerator: launches, and no word to the host."""

from functools import wraps
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.runtime.operations import NoWaiting, Operations, fused
from tests.tiny import Pipeline, policy, sample_dit, tiny_dit
from torch.utils._python_dispatch import _disable_current_modes

from cachesmith.policies import (
    Clusters,
    Distance,
    Fitted,
    Fixed,
    Interval,
    Lagrange,
    Modules,
    Observed,
    Policy,
    Reuse,
    Stack,
    Taylor,
)
from cachesmith.runtime import (
    Answer,
    GuidanceDifference,
    Session,
    UnitCall,
    UnitResult,
    UseOutput,
    Watcher,
    apply,
    watch,
)

GATE = Interval(interval=4, warmup=2)
STEPS = 12
STACK_ROWS = Fitted(weights="w", input_weights="v", ids="ids")


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(1, STEPS, 3, 32)).astype(np.float32),
        "v": rng.normal(size=(1, STEPS, 4, 32)).astype(np.float32),
        "ids": np.arange(32, dtype=np.int32)[None],
    }


FORECASTS: dict[str, tuple[Policy, int]] = {
    "reuse": (policy(Modules(), GATE, Reuse()), 0),
    "reuse on the stack": (policy(Stack(), GATE, Reuse()), 1),
    "taylor": (policy(Modules(), GATE, Taylor(order=2)), 1),
    "clusters": (
        policy(
            Modules(),
            GATE,
            Clusters(ids="c", rows=(Reuse(), Lagrange(order=1))),
            {"c": np.zeros((8, 32), np.int32)},
        ),
        1,
    ),
    "rfc": (policy(Modules(), GATE, Taylor(order=2), magnitude=Observed()), 4),
    "fitted stack": (policy(Stack(), GATE, STACK_ROWS, arrays()), 2),
}


@pytest.mark.parametrize("name", FORECASTS)
def test_launches_of_a_forecast(dit: Pipeline, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The figures of the fused path: at most so many launches a lane and step."""
    chosen, launches = FORECASTS[name]
    operations = Operations()
    most: list[int] = []
    answer = Session.answer

    @wraps(answer)
    def counting(self: Session, call: UnitCall) -> Any:
        before, forecasts = operations.counts.total(), self.stats.forecast.total()
        with operations:
            result = answer(self, call)
        if self.stats.forecast.total() > forecasts and self._tick is not None and (self._tick.step or 0) > 6:
            most.append(operations.counts.total() - before)
        return result

    monkeypatch.setattr(Session, "answer", counting)
    with fused(monkeypatch, operations), apply(dit, chosen):
        sample_dit(dit, steps=STEPS)
    assert most and max(most) <= launches


STATIC = {
    "fora": policy(Modules(), GATE, Reuse()),
    "rfc without its gate": FORECASTS["rfc"][0],
    "fitted": FORECASTS["fitted stack"][0],
    "by halves": policy(Stack(follower="first"), Fixed(mask="CHCF" * 3), Lagrange(order=1)),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_static_gate_reads_nothing_back(dit: Pipeline, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The central promise on an accelerator: the stream never waits. The first call of a run may look once."""
    for method in ("begin", "answer", "observe", "computes", "end"):
        monkeypatch.setattr(Session, method, _without_waiting(getattr(Session, method)))
    with fused(monkeypatch, Operations()), apply(dit, STATIC[name]) as session:
        sample_dit(dit, steps=STEPS)
    assert session.stats.forecast and not session.stats.fallbacks


def test_waiting_would_be_seen(dit: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that measures has to read its measurement."""
    monkeypatch.setattr(Session, "answer", _without_waiting(Session.answer))
    measured = policy(Stack(), Distance(signal="input", threshold=0.1), Reuse())
    with pytest.raises(AssertionError, match="reads the device"), apply(dit, measured):
        sample_dit(dit, steps=STEPS)


def _without_waiting(method: Any) -> Any:
    @wraps(method)
    def watched(*args: Any) -> Any:
        with NoWaiting():  # type: ignore[no-untyped-call]
            return method(*args)

    return watched


LONG: dict[str, tuple[Any, Any, int]] = {
    "stack": (Stack(), None, 4),
    "taylor on modules": (Modules(), None, 114 + 2),
    "rfc on modules": (Modules(), Observed(), 3 * 114 + 2),
}
"""Granularity, magnitude, and launches that a forecast step adds to what the model does around its units."""


class Known(Watcher):
    """Answers every unit with an output of zeros that is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}

    def answer(self, call: UnitCall) -> Answer:
        with _disable_current_modes():
            output = self.outputs.setdefault(call.unit.name, tuple(torch.zeros_like(i) for i in call.inputs))
        return UseOutput(output)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


@pytest.mark.parametrize("name", LONG)
def test_launches_of_a_forecast_step_of_57_blocks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """FLUX.1's depth at a tiny width: only launches count. 114 lanes, two launches for the finite check."""
    units, magnitude, most = LONG[name]
    transformer = deep_flux()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    operations = Operations()
    pipe = SimpleNamespace(transformer=transformer, scheduler=scheduler)

    def launches(timestep: torch.Tensor) -> int:
        before = operations.counts.total()
        with operations, torch.no_grad():
            transformer(**flux_inputs(), timestep=timestep[None] / 1000)
        return operations.counts.total() - before

    chosen = policy(units, Fixed(mask="CCC" + "F" * 7), Taylor(order=2), magnitude=magnitude)
    with fused(monkeypatch, operations), apply(transformer, chosen, scheduler=scheduler):
        step = [launches(timestep) for timestep in scheduler.timesteps[:6]][-1]
    with watch(pipe, units, Known()):
        around = launches(scheduler.timesteps[0])
    assert step - around <= most
    uncached = launches(scheduler.timesteps[0])
    assert step < uncached / 2 and around > 50


def deep_flux() -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=19, num_single_layers=38, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip


def flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.ones(1, 4, 4),
        "encoder_hidden_states": torch.ones(1, 2, 8),
        "pooled_projections": torch.ones(1, 8),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(2, 3),
    }


def test_the_count_sees_what_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain path takes more launches than the fused one: the bounds above are no matter of course."""
    operations = Operations()
    chosen = FORECASTS["rfc"][0]
    pipe = tiny_dit()
    answer = Session.answer

    def counting(self: Session, call: UnitCall) -> Any:
        assert not isinstance(call.unit, GuidanceDifference)
        with operations:
            return answer(self, call)

    monkeypatch.setattr(Session, "answer", counting)
    with apply(pipe, chosen) as session:
        sample_dit(pipe, steps=STEPS)
    assert operations.counts.total() > 8 * session.stats.forecast.total()
