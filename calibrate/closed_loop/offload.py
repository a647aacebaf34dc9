"""Denoisers that rest on the host while others compute (`enable_model_cpu_offload`)."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from cachesmith.runtime.models.foreign_hooks import diffusers_hooks, has_accelerate_hook


def bring(denoiser: nn.Module, others: Iterable[nn.Module]) -> None:
    """Have `denoiser` on the device and the `others` off it, where hooks of accelerate move whole components.

    The pipeline's own hooks know the order of one run: neither a run that is left early and begun again keeps to it,
    nor a backward pass.
    """
    hook = _hook(denoiser)
    if hook is None:
        return
    for other in others:
        away = _hook(other)
        if away is not None and other is not denoiser:
            away.init_hook(other)
    hook.pre_forward(denoiser)


def bring_for_gradients(outputs: Iterable[Any], denoiser: nn.Module, others: Iterable[nn.Module]) -> None:
    """Do so again where a backward pass comes to these `outputs` of `denoiser`."""
    if _hook(denoiser) is None:
        return

    def hook(_: torch.Tensor) -> None:
        bring(denoiser, others)

    for each in outputs:
        if isinstance(each, torch.Tensor) and each.requires_grad:
            each.register_hook(hook)  # type: ignore[no-untyped-call]


def is_streamed(denoiser: nn.Module) -> bool:
    """Whether hooks have parts of it on the device one by one, each for as long as it computes: those of accelerate's
    sequential offloading and of diffusers' group offloading. A backward pass finds their weights gone."""
    return any(
        (module is not denoiser and has_accelerate_hook(module))
        or any(type(hook).__module__.endswith("group_offloading") for hook in diffusers_hooks(module))
        for module in denoiser.modules()
    )


def holding() -> AbstractContextManager[Any]:
    """Have a backward pass use the weights that a call was computed with: those of `is_streamed` go."""
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda saved: saved)


def _hook(module: nn.Module) -> Any:
    """Accelerate's hook that moves the whole module; those that move parts of it have no module before."""
    hook = getattr(module, "_hf_hook", None)
    return hook if hasattr(hook, "prev_module_hook") else None
