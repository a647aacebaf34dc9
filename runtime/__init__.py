"""Sampling under a policy: `with apply(pipe, policy) as session: ...`."""

from .adapters import ADAPTERS, Adapter, BlockList, ModuleSpan, adapter_for
from .apply import apply
from .attach import Runner, attach
from .clock import Clock, Tick
from .plan import Compute, Decision, Forecast, Plan, compile_plan
from .session import Session
from .stats import Stats
from .units import Unit, resolve_units

__all__ = [
    "ADAPTERS",
    "Adapter",
    "BlockList",
    "Clock",
    "Compute",
    "Decision",
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
    "resolve_units",
]
