"""Units without modules, and calls of them, for tests of what decides and remembers."""

from collections.abc import Callable

from torch import Tensor

from cachesmith.runtime import (
    BlockRun,
    Feature,
    ModuleUnit,
    Runner,
    Session,
    Unit,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.runs.session import Planner


def block_run(
    name: str = "stack", *, share: float = 1.0, lane: int = 0, streams: tuple[str, ...] = ("hidden_states",)
) -> BlockRun:
    return BlockRun(name, name, (), (), streams, joined=False, share=share, lane=lane)


def module_unit(
    name: str = "attn.0", *, lane: int = 0, streams: tuple[str, ...] = ("hidden_states",)
) -> ModuleUnit:
    return ModuleUnit(name, name.partition(".")[0], (), (), streams, share=1.0, lane=lane)


def following(planner: Planner) -> Session:
    """A session that follows the plans of `planner`."""
    session = Session()
    session.follow(planner)
    return session


def visit(
    runner: Runner,
    unit: Unit,
    inputs: Feature,
    outputs: Feature,
    modulated: Callable[[], Tensor] | None = None,
) -> bool:
    """Call a unit as the transformer does; return whether it was computed, which gives `outputs`."""
    if isinstance(runner.answer(UnitCall(unit, inputs, modulated)), UseOutput):
        return False
    runner.observe(UnitResult(unit, inputs, outputs))
    return True
