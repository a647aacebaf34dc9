"""`cachesmith inspect X --plan`: the plan of one run as a table that a person can follow."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from cachesmith.commands.output import print_json, results
from cachesmith.policies import (
    Modules,
    Policy,
    PolicyError,
    Profile,
    SamplerKey,
    Segments,
    Stack,
    denoiser_policy,
)

if TYPE_CHECKING:
    from cachesmith.runtime.plan.plan import Decision


def inspect_plan(policy: Policy, name: str | None, json: bool) -> None:
    """Print what is done with every unit group at every step. Raises `PolicyError` where the file does not say."""
    table = plan_table(policy, name)
    if json:
        print_json({"id": policy.id, "plan": table})
        return
    groups = list(table[0]["units"])
    shown = Table("step", "noise", *groups, box=None, pad_edge=False)
    for row in table:
        cells = (_cell(row["units"][group]) for group in groups)
        shown.add_row(str(row["step"]), f"{row['noise']:.4g}", *cells)
    console = results()
    console.print(
        "C computed, C* computed and remembered, F forecast from the steps named (with their weights), - not called"
    )
    console.print(shown)


def plan_table(policy: Policy, name: str | None) -> list[dict[str, Any]]:
    """One entry a step: its noise level, and for every unit group the decision; None where another denoiser is called.

    Groups of further denoisers have the denoiser's name before their own.
    """
    sampler = policy.document.sampler
    if sampler is None:
        raise PolicyError(
            "this policy names no sampler, so its steps are not known; calibrate it, or sample under it and read "
            "session.plan.table"
        )
    decisions = _decisions(policy, name, sampler)
    for further in policy.profile(name).denoisers:
        own = denoiser_policy(policy, further)
        assert own is not None
        decisions |= {f"{further}/{group}": row for group, row in _decisions(own, name, sampler).items()}
    return [
        {"step": step, "noise": noise, "units": {group: row[step] for group, row in decisions.items()}}
        for step, noise in enumerate(sampler.sigmas)
    ]


def _decisions(
    policy: Policy, name: str | None, sampler: SamplerKey
) -> dict[str, list[dict[str, Any] | None]]:
    """By unit group of one denoiser, step by step."""
    from cachesmith.runtime.models.sampler import axis_values, is_flow_by
    from cachesmith.runtime.plan.compile_plan import compile_plan

    profile = policy.profile(name)
    flow = is_flow_by(sampler.scheduler, sampler.settings or {})
    times = axis_values(profile.axis, sampler.sigmas, flow)
    plan = compile_plan(policy, profile, times, _stand_ins(profile))
    if not plan.table:
        raise PolicyError(f"the gate `{profile.gate.kind}` decides while sampling: there is no plan to print")
    return {group: [_facts(decision) for decision in row] for group, row in plan.table.items()}


def _facts(decision: "Decision") -> dict[str, Any] | None:
    from cachesmith.runtime.plan.plan import NOT_ITS_STEP, Compute

    if decision == NOT_ITS_STEP:
        return None
    if isinstance(decision, Compute):
        return {"compute": True, "keep": decision.keep}
    return {"sources": decision.sources, "weights": decision.weights}


def _stand_ins(profile: Profile) -> Any:
    """Units without modules, one for everything that the schedule can tell apart."""
    from cachesmith.runtime.models.units import BlockRun, GuidanceDifference, ModuleUnit

    stream = ("hidden_states",)
    match profile.units:
        case Stack(follower=follower):
            stack = BlockRun("stack", "stack", (), (), stream, joined=False, share=1.0, lane=0)
            return (stack,) if follower is None else (stack, GuidanceDifference(stream, 1.0, 1, follower))
        case Segments(starts=starts):
            names = [f"segment.{i}" for i in range(len(starts))]
            return tuple(
                BlockRun(n, n, (), (), stream, joined=False, share=1.0, lane=i) for i, n in enumerate(names)
            )
        case Modules():
            named = getattr(profile.gate, "groups", {})
            groups = dict.fromkeys(("modules", *named, *profile.overrides))
            return tuple(ModuleUnit(n, n, (), (), stream, share=1.0, lane=i) for i, n in enumerate(groups))


def _cell(decision: dict[str, Any] | None) -> str:
    if decision is None:
        return "-"
    if "compute" in decision:
        return "C*" if decision["keep"] else "C"
    weights = [f"{weight:+.3g}" for weight in decision["weights"]]
    sources = [str(source) for source in decision["sources"]]
    terms = [f"{w}·{s}" for w, s in zip(weights, sources, strict=True)] if weights else sources
    return f"F {' '.join(terms)}"
