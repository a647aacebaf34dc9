"""From a gate that decides while sampling to its state."""

from typing import assert_never

from cachesmith.policies import Distance, Fixed, Interval, Probe, Relational
from cachesmith.runtime.gates.base import GateState
from cachesmith.runtime.gates.distance import DistanceState
from cachesmith.runtime.gates.probe import ProbeState
from cachesmith.runtime.gates.relational import RelationalState
from cachesmith.runtime.plan.plan import Plan


def new_state(plan: Plan, start: int) -> GateState | None:
    """Return the state of the plan's gate for one branch of a run from step `start`; None for a static gate."""
    match plan.profile.gate:
        case Fixed() | Interval():
            return None
        case Relational() as gate:
            return RelationalState(plan, gate, start)
        case Distance() as gate:
            return DistanceState(plan, gate, start)
        case Probe() as gate:
            return ProbeState(plan, gate, start)
        case _:
            assert_never(plan.profile.gate)
