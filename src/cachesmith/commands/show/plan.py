"""`cachesmith inspect X --plan`: the plan of one run as a table that a person can follow."""

from typing import Any

from rich.table import Table

from cachesmith.commands.output import print_json, results
from cachesmith.policies import Modules, Policy, PolicyError, Profile, Segments, Stack


def inspect_plan(policy: Policy, name: str | None, json: bool) -> None:
    """Print what is done with every unit group at every step. Raises `PolicyError` where the file does not say."""
    table = plan_table(policy, policy.profile(name))
    if json:
        print_json({"id": policy.id, "plan": table})
        return
    groups = list(table[0]["units"])
    shown = Table("step", "noise", *groups, box=None, pad_edge=False)
    for row in table:
        shown.add_row(
            str(row["step"]), f"{row['noise']:.4g}", *(_cell(row["units"][group]) for group in groups)
        )
    console = results()
    console.print(
        "C computed, C* computed and remembered, F forecast from the steps named (with their weights)"
    )
    console.print(shown)


def plan_table(policy: Policy, profile: Profile) -> list[dict[str, Any]]:
    """One entry a step: its noise level, and for every unit group the decision."""
    from cachesmith.runtime.models.sampler import axis_values
    from cachesmith.runtime.plan.compile_plan import compile_plan
    from cachesmith.runtime.plan.plan import Compute

    sampler = policy.document.sampler
    if sampler is None:
        raise PolicyError(
            "this policy names no sampler, so its steps are not known; calibrate it, or sample under it and read "
            "session.plan.table"
        )
    flow = sampler.scheduler.startswith("FlowMatch")
    times = axis_values(profile.axis, sampler.sigmas, flow)
    plan = compile_plan(policy, profile, times, _stand_ins(policy, profile))
    if not plan.table:
        raise PolicyError(f"the gate `{profile.gate.kind}` decides while sampling: there is no plan to print")
    table = []
    for step, noise in enumerate(sampler.sigmas):
        units: dict[str, Any] = {}
        for name, decisions in plan.table.items():
            decision = decisions[step]
            if isinstance(decision, Compute):
                units[name] = {"compute": True, "keep": decision.keep}
            else:
                units[name] = {"sources": decision.sources, "weights": decision.weights}
        table.append({"step": step, "noise": noise, "units": units})
    return table


def _stand_ins(policy: Policy, profile: Profile) -> Any:
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


def _cell(decision: dict[str, Any]) -> str:
    if "compute" in decision:
        return "C*" if decision["keep"] else "C"
    weights = [f"{weight:+.3g}" for weight in decision["weights"]]
    sources = [str(source) for source in decision["sources"]]
    terms = [f"{w}·{s}" for w, s in zip(weights, sources, strict=True)] if weights else sources
    return f"F {' '.join(terms)}"
