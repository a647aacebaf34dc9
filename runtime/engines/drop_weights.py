"""Free the torch weights of what engines compute."""

from collections.abc import Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn

from cachesmith.policies import Distance, EngineError, ModelKey, Profile
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.fingerprint import model_key
from cachesmith.runtime.models.units import BlockRun, Unit
from cachesmith.runtime.models.weights import DROPPED


def check_droppable(profile: Profile, units: tuple[Unit, ...], bundle: object) -> None:
    """Raise `EngineError` when there is no bundle, or `profile` has torch compute some of what engines compute."""
    if bundle is None:
        raise EngineError(
            "without a bundle torch computes everything; leave drop_torch_weights out, or give a bundle"
        )
    why = None
    if any(f.refresh is not None for f in (profile.forecaster, *profile.overrides.values())):
        why = "computes single tokens of a unit"
    elif (
        isinstance(profile.gate, Distance)
        and profile.gate.signal == "modulated"
        and isinstance(units[0], BlockRun)
        and units[0].entry is not None
    ):
        why = "looks at the modulated input of the first block"
    if why is not None:
        raise EngineError(
            f"this profile {why}, which takes the torch weights; leave drop_torch_weights out, or choose another "
            "profile"
        )


def drop_weights(transformer: nn.Module, members: Iterable[nn.Module], present: ModelKey) -> int:
    """Free all parameters and buffers below `members`, for good; return the bytes freed.

    What the transformer itself calls inside blocks stays. A later call of a member raises `EngineError`.
    """
    stays = {
        id(m) for path in adapter_for(transformer).outer for m in transformer.get_submodule(path).modules()
    }
    vars(transformer)[DROPPED] = present
    freed = 0
    for member in members:
        freed += sum(_empty(module) for module in member.modules() if id(module) not in stays)
        vars(member)["forward"] = _gone(member)
    return freed


def present_key(transformer: nn.Module, pipe: Any) -> ModelKey:
    """Describe the transformer as loaded; what was known before its weights were dropped still holds."""
    key: ModelKey = model_key(transformer, pipe)
    remembered: ModelKey | None = vars(transformer).get(DROPPED)
    return key if remembered is None else key.model_copy(update={"weights_hash": remembered.weights_hash})


def _empty(module: nn.Module) -> int:
    freed = 0
    for name, value in [*module.named_parameters(recurse=False)]:
        freed += value.numel() * value.element_size()
        setattr(module, name, nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False))
    for name, buffer in [*module.named_buffers(recurse=False)]:
        freed += buffer.numel() * buffer.element_size()
        setattr(module, name, torch.empty_like(buffer, device="meta"))
    return freed


def _gone(member: nn.Module) -> Any:
    @wraps(member.forward)
    def forward(*_: Any, **__: Any) -> Any:
        raise EngineError(
            "the torch weights of this block were dropped for engines; apply the bundle again, or reload the pipeline"
        )

    return forward
