"""Sampling under a policy: `with apply(pipe, policy) as session: ...`."""

from cachesmith.runtime.apply import apply
from cachesmith.runtime.distill import distill
from cachesmith.runtime.engines.bundle import Engines, open_bundle
from cachesmith.runtime.hooks.attach import attach
from cachesmith.runtime.hooks.clock import Clock, Tick
from cachesmith.runtime.hooks.runner import Runner
from cachesmith.runtime.models.adapters import ADAPTERS, Adapter, BlockList, ModuleSpan, adapter_for
from cachesmith.runtime.models.units import Unit, resolve_units
from cachesmith.runtime.plan.compile_plan import compile_plan
from cachesmith.runtime.plan.plan import Compute, Decision, Forecast, Plan
from cachesmith.runtime.replicate import replicate
from cachesmith.runtime.session import Session
from cachesmith.runtime.stats import Stats

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
    "replicate",
    "resolve_units",
]
