"""Hooks that diffusers put on modules: they cast, move or cache, and come and go without a trace."""

from typing import Any

from torch import nn


def diffusers_hooks(module: nn.Module) -> list[Any]:
    """Those on `module` itself, not on what lies below it."""
    return [*getattr(vars(module).get("_diffusers_hook"), "hooks", {}).values()]


def has_accelerate_hook(module: nn.Module) -> bool:
    """Whether accelerate's hooks move `module` or its weights."""
    return "_hf_hook" in vars(module)
