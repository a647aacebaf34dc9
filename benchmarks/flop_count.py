"""What a policy costs in floating point operations (FLOPs), counted unit by unit.

torch's counter sees every matrix product, convolution and attention of a call, and none of the elementwise work
(normalisation, activation, modulation, a forecast's weighted sums), which is below 1 % of a transformer. A
multiply-add counts as two operations: with this convention, attention included, DiT-XL/2 with 50 DDIM steps and
guidance costs the 23.7 T, and FLUX.1-dev the 74.4 T a step, that the TaylorSeer line of papers reports.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cachesmith.policies import GUIDANCE, StaticGate, Units, mask
from cachesmith.runtime import resolve_units
from cachesmith.runtime.models.units import NetworkUnit, network_units


@dataclass(frozen=True)
class CallFlops:
    """FLOPs of one transformer call: in total, of every unit, and of every group of units."""

    total: int
    units: Mapping[str, int]
    groups: Mapping[str, int]

    @property
    def outside(self) -> int:
        """What is computed at every step: embeddings, modulation, the final layer."""
        return self.total - sum(self.units.values())

    def of_schedule(self, gate: StaticGate, steps: int) -> int:
        """FLOPs of a run of `steps` calls under a static gate. Raises `PolicyError` where the mask does not fit."""
        computed = {group: mask(gate, steps, group).count("C") for group in self.groups}
        return steps * self.outside + sum(flops * computed[group] for group, flops in self.groups.items())


@torch.no_grad()
def count_flops(transformer: nn.Module, units: Units, /, **arguments: Any) -> CallFlops:
    """Call `transformer` once with `arguments` and count; on the meta device nothing is computed.

    Raises `PolicyError` when there is no adapter for the transformer.
    """
    resolved = resolve_units(transformer, units)
    members = network_units(resolved)
    counter = FlopCounterMode(display=False)
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for unit in members:
            _measure(unit, counter, spent, stack)
        with counter:
            transformer(**arguments)
    if units.follower is not None:
        spent[GUIDANCE] = spent["stack"] // 2
        spent["stack"] -= spent[GUIDANCE]
    groups: Counter[str] = Counter()
    for each in resolved:
        groups[each.group] += spent[each.name]
    return CallFlops(counter.get_total_flops(), dict(spent), dict(groups))


def _measure(unit: NetworkUnit, counter: FlopCounterMode, spent: Counter[str], stack: ExitStack) -> None:
    """Read the counter when the unit's first member is called and when its last one returns."""

    def begin(*_: object) -> None:
        spent[unit.name] -= counter.get_total_flops()

    def end(*_: object) -> None:
        spent[unit.name] += counter.get_total_flops()

    stack.callback(unit.members[0].register_forward_pre_hook(begin).remove)
    stack.callback(unit.members[-1].register_forward_hook(end).remove)
