"""Sampling under a policy: `with apply(pipe, policy) as session: ...`."""

from cachesmith.runtime.adapters import ADAPTERS, Adapter, BlockList, ModuleSpan, adapter_for
from cachesmith.runtime.apply import apply
from cachesmith.runtime.attach import attach
from cachesmith.runtime.clock import Clock, Tick
from cachesmith.runtime.distill import distill
from cachesmith.runtime.engines import Engines, open_bundle
from cachesmith.runtime.plan import Compute, Decision, Forecast, Plan
from cachesmith.runtime.planner import compile_plan
from cachesmith.runtime.runner import Runner
from cachesmith.runtime.session import Session
from cachesmith.runtime.stats import Stats
from cachesmith.runtime.units import Unit, resolve_units

__all__ = [
    "ADAPTERS",
    "Adapter",
    "BlockList",
    "Clock",
    "Compute",
    "Decision",
    "Engines",
    "Forecast",
    "ModuleSpan",
    "Plan",
    "Runner",
    "Session",
    "Stats",
    "Tick",
    "Unit",
    "adapter_for",
    "apply",
    "attach",
    "compile_plan",
    "distill",
    "open_bundle",
    "resolve_units",
]
