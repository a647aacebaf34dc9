"""From a profile, a sampler and a model to a plan: everything that can be settled and refused before the loop."""

from typing import assert_never

from cachesmith.policies import (
    Calibrated,
    Clusters,
    Distance,
    Fitted,
    Fixed,
    Interval,
    Mixed,
    Modules,
    Policy,
    PolicyError,
    Probe,
    Profile,
    Relational,
    mask,
)
from cachesmith.policies.profile import has_fitted
from cachesmith.runtime.gates import gate_rules
from cachesmith.runtime.models.adapters import KINDS
from cachesmith.runtime.models.units import Unit, is_tokenwise
from cachesmith.runtime.plan.plan import Plan

_GROUPS = 12
"""Unit groups that a message names."""


def compile_plan(
    policy: Policy, profile: Profile, times: tuple[float, ...], units: tuple[Unit, ...], start: int = 0
) -> Plan:
    """Settle a profile on a sampler with `len(times)` steps, sampled from step `start` (above 0: img2img).

    Raises `PolicyError` where profile, sampler and model do not fit together.
    """
    _check_groups(profile, units)
    gate = gate_rules(profile.gate, units)
    plan = Plan(policy, profile, times, units, _masks(profile, len(times), units, start), gate)
    for unit in units:
        _check_arrays(plan, unit)
    _check_refresh(plan)
    return plan


def _check_refresh(plan: Plan) -> None:
    """The profile's refresh applies to what it can be applied to; one that applies to nothing is a mistake."""
    able = {unit.group for unit in plan.units if is_tokenwise(unit)}
    wanted = {group for group, forecaster in plan.profile.overrides.items() if forecaster.refresh is not None}
    unable = sorted(wanted & {unit.group for unit in plan.units} - able)
    if unable:
        raise PolicyError(
            f"{unable[0]} cannot be computed token by token; leave `refresh` out of its override"
        )
    if plan.profile.forecaster.refresh is not None and not able:
        raise PolicyError("no unit of this model can be computed token by token; leave out `refresh`")


def _masks(profile: Profile, steps: int, units: tuple[Unit, ...], start: int) -> dict[str, str]:
    fitted = has_fitted(profile)
    match profile.gate:
        case Fixed() as gate:
            return {unit.group: mask(gate, steps, unit.group) for unit in units}
        case Interval() as gate:
            # fitted weights belong to the schedule of a full run, wherever this one starts
            start = 0 if fitted else start
            return {unit.group: "C" * start + mask(gate, steps - start) for unit in units}
        case Relational() | Distance() | Probe() as gate if fitted:
            raise PolicyError(
                f"fitted weights need to know which steps were computed, but the gate `{gate.kind}` decides while "
                "sampling; use the gate `fixed` or `interval`, or another kind of rows without a correction"
            )
        case Relational() | Distance() | Probe():
            return {}
        case _:
            assert_never(profile.gate)


def _check_groups(profile: Profile, units: tuple[Unit, ...]) -> None:
    """Schedules and forecasters of single groups are for groups that are there, or in another supported model."""
    groups = dict.fromkeys(unit.group for unit in units)
    known = {*groups, *(KINDS if isinstance(profile.units, Modules) else ())}
    named = [*profile.overrides, *(profile.gate.groups if isinstance(profile.gate, Fixed) else ())]
    for name in named:
        if name not in known:
            raise PolicyError(
                f"the policy names the unit group {name!r}, but with units `{profile.units.kind}` this model has "
                f"{', '.join([*groups][:_GROUPS])}; rename or remove it"
            )


def _check_arrays(plan: Plan, unit: Unit) -> None:
    """Arrays are indexed by lane and, if fitted per step, by step: both must be there."""
    forecaster, arrays = plan.forecaster(unit), plan.policy.arrays
    names: list[str] = []
    match forecaster.rows:
        case Fitted(weights=name):
            names.append(name)
            _check_steps("weights", name, plan)
        case Clusters(ids=name):
            names.append(name)
    if forecaster.subspace is not None:
        names.append(forecaster.subspace.basis)
    if isinstance(forecaster.magnitude, Calibrated | Mixed):
        names.append(forecaster.magnitude.scales)
    if forecaster.correction is not None:
        names.append(forecaster.correction.offsets)
        _check_steps("offsets", forecaster.correction.offsets, plan)
    for name in names:
        if len(arrays[name]) < unit.lane + len(unit.streams):
            raise PolicyError(
                f"array {name!r} covers {len(arrays[name])} lanes but unit {unit.name} needs number "
                f"{unit.lane + len(unit.streams)}; the policy belongs to another model"
            )


def _check_steps(what: str, name: str, plan: Plan) -> None:
    fitted = plan.policy.arrays[name].shape[1]
    if fitted != plan.steps:
        raise PolicyError(
            f"{what} {name!r} are fitted for {fitted} steps but the sampler visits {plan.steps}; "
            "sample with that number of steps or recalibrate"
        )
