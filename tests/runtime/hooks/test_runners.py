"""What every runner must do, and what it may rely on. A new one is one entry in `RUNNERS`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.units import following
from tests.tiny import Pipeline, policy, sample_dit
from torch import Tensor

from cachesmith.policies import Fixed, Lagrange, Stack
from cachesmith.runtime import (
    COMPUTE_ALL,
    Answer,
    Runner,
    Tick,
    UnitCall,
    UnitResult,
    Watcher,
    compile_plan,
    resolve_units,
    watch,
)
from cachesmith.runtime.runs.guidance import guided

STEPS = 8


class Silent(Watcher):
    """Keeps nothing."""

    def observe(self, result: UnitResult) -> None:
        """Nothing."""


def session(pipe: Pipeline, stack: Stack, mask: str) -> Runner:
    chosen = policy(stack, Fixed(mask=mask), Lagrange(order=1))
    units = resolve_units(pipe.transformer, stack)
    times = tuple(map(float, range(len(mask))))
    runner = following(lambda start: compile_plan(chosen, chosen.profile(), times, units, start))
    return guided(runner, units, runner.computes)


RUNNERS: dict[str, tuple[Stack, Callable[[Pipeline], Runner]]] = {
    "watcher": (Stack(), lambda pipe: Silent()),
    "session": (Stack(), lambda pipe: session(pipe, Stack(), "C" * STEPS)),
    "guidance": (Stack(follower="first"), lambda pipe: session(pipe, Stack(follower="first"), "C" * STEPS)),
}
every_runner = pytest.mark.parametrize("name", RUNNERS)


@every_runner
def test_computing_everything_changes_nothing(dit: Pipeline, name: str) -> None:
    plain = sample_dit(dit, steps=STEPS)
    units, make = RUNNERS[name]
    with watch(dit, units, make(dit)):
        assert np.array_equal(sample_dit(dit, steps=STEPS), plain)
    assert np.array_equal(sample_dit(dit, steps=STEPS), plain)


@every_runner
def test_an_interrupted_run_does_not_spoil_the_next(dit: Pipeline, name: str) -> None:
    plain = sample_dit(dit, steps=STEPS)
    units, make = RUNNERS[name]
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with watch(dit, units, make(dit)):
        handle = dit.transformer.transformer_blocks[2].register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            sample_dit(dit, steps=STEPS)
        handle.remove()
        assert np.array_equal(sample_dit(dit, steps=STEPS), plain)


class Script(Watcher):
    """Notes the order of what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.results: list[UnitResult] = []

    def begin(self, tick: Tick) -> None:
        super().begin(tick)
        self.told.append("begin")

    def answer(self, call: UnitCall) -> Answer:
        self.told.append("answer")
        return COMPUTE_ALL

    def observe(self, result: UnitResult) -> None:
        self.told.append("observe")
        self.results.append(result)

    def end(self, output: Tensor) -> bool:
        self.told.append("end")
        return False


def test_the_order_in_which_a_runner_is_told(dit: Pipeline) -> None:
    script = Script()
    with watch(dit, Stack(), script):
        sample_dit(dit, steps=STEPS)
    assert script.told == ["begin", "answer", "observe", "end"] * STEPS


def test_a_result_is_inputs_outputs_and_what_is_cached_of_them(dit: Pipeline) -> None:
    script = Script()
    with watch(dit, Stack(), script):
        sample_dit(dit, steps=STEPS)
    for result in script.results:
        (feature,) = result.feature
        assert torch.equal(feature, result.outputs[0] - result.inputs[0])
        assert result.feature is result.feature


def test_a_call_that_is_to_be_made_again_is(dit: Pipeline) -> None:
    """Once: `end` hears of the second output, too, and its answer does not count."""

    class Again(Script):
        def end(self, output: Tensor) -> bool:
            super().end(output)
            return True

    script, plain = Again(), sample_dit(dit, steps=STEPS)
    with watch(dit, Stack(), script):
        assert np.array_equal(sample_dit(dit, steps=STEPS), plain)
    assert script.told == ["begin", "answer", "observe", "end", "answer", "observe", "end"] * STEPS
