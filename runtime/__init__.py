"""Sampling under a policy: `with apply(pipe, policy) as session: ...`."""

from cachesmith.runtime.apply import apply
from cachesmith.runtime.discovery.discover import Discovery, DiscoveryError, discover, learn
from cachesmith.runtime.distill import distill
from cachesmith.runtime.enable import disable, enable
from cachesmith.runtime.engines.bundle import Engines, open_bundle
from cachesmith.runtime.features import Feature
from cachesmith.runtime.hooks.attach import attach
from cachesmith.runtime.hooks.clock import Clock, Tick
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.hooks.runner import (
    COMPUTE_ALL,
    Answer,
    ComputeAll,
    ComputeRows,
    ComputeTokens,
    Runner,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.hooks.watch import Watcher, watch
from cachesmith.runtime.models.adapter import Adapter, BlockList, IdleList, ModuleSpan
from cachesmith.runtime.models.adapters import ADAPTERS, adapter_for, register
from cachesmith.runtime.models.units import (
    BlockRun,
    GuidanceDifference,
    ModuleUnit,
    Unit,
    block_lists,
    resolve_units,
)
from cachesmith.runtime.plan.compile_plan import compile_plan
from cachesmith.runtime.plan.plan import Compute, Decision, Forecast, Plan
from cachesmith.runtime.replicate import replicate
from cachesmith.runtime.runs.session import Session
from cachesmith.runtime.stats import Stats

__all__ = [
    "ADAPTERS",
    "COMPUTE_ALL",
    "Adapter",
    "Answer",
    "BlockList",
    "BlockRun",
    "Clock",
    "Compute",
    "ComputeAll",
    "ComputeRows",
    "ComputeTokens",
    "Decision",
    "Discovery",
    "DiscoveryError",
    "Engines",
    "Feature",
    "Forecast",
    "GuidanceDifference",
    "IdleList",
    "ModuleSpan",
    "ModuleUnit",
    "Plan",
    "Runner",
    "Session",
    "Stats",
    "Tick",
    "Unit",
    "UnitCall",
    "UnitResult",
    "UseOutput",
    "Watcher",
    "adapter_for",
    "apply",
    "attach",
    "block_lists",
    "compile_plan",
    "disable",
    "discover",
    "distill",
    "enable",
    "learn",
    "open_bundle",
    "patched",
    "register",
    "replicate",
    "resolve_units",
    "watch",
]
