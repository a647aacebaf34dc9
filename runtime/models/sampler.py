"""What a policy needs to know of a diffusers scheduler: its noise levels, and time axes made from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

SIGMA_FLOOR = 1e-4
"""Amplitude of noise or signal that stands for zero, so that ratios stay finite."""


def is_flow(scheduler: Any) -> bool:
    """Whether x_t = (1 - sigma) x_0 + sigma noise (flow matching) rather than x_0 + sigma noise."""
    return is_flow_by(type(scheduler).__name__, getattr(scheduler, "config", {}))


def is_flow_by(name: str, settings: Mapping[str, Any]) -> bool:
    """As `is_flow`, by the scheduler's class and its settings, which are what a policy file has of it."""
    return bool(
        name.startswith("FlowMatch")
        or settings.get("use_flow_sigmas", False)
        or settings.get("prediction_type") == "flow_prediction"
    )


def noise_levels(scheduler: Any) -> tuple[float, ...]:
    """Return one sigma per entry of `scheduler.timesteps`, in sampling order.

    Flow matching: sigma in [0, 1]. Otherwise the noise-to-signal ratio sqrt((1 - a) / a), with a = alpha_cumprod(t).
    A scheduler that tells neither is known by its timesteps, as parts of the largest it was trained on, or of its own.
    """
    timesteps = scheduler.timesteps
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(timesteps) > 0:
        return tuple(torch.as_tensor(sigmas)[: len(timesteps)].double().tolist())
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return _by_timestep(scheduler)
    alphas = torch.as_tensor(alphas).double().cpu()
    index = torch.as_tensor(timesteps).long().clamp(0, len(alphas) - 1).cpu()
    signal = alphas[index].clamp_min(SIGMA_FLOOR**2)
    return tuple(((1 - signal) / signal).sqrt().tolist())


def _by_timestep(scheduler: Any) -> tuple[float, ...]:
    times = torch.as_tensor(scheduler.timesteps).double().clamp_min(0)
    trained = float(getattr(scheduler, "config", {}).get("num_train_timesteps") or 0)
    largest = max(float(times.max()), trained if float(times.max()) > 1 else 0.0, SIGMA_FLOOR)
    return tuple((times / largest).tolist())


def axis_values(axis: str, sigmas: Sequence[float], flow: bool) -> tuple[float, ...]:
    """Return the time of every step on `axis`: `step` (index), `sigma`, or `log-snr`."""
    if axis == "step":
        return tuple(float(i) for i in range(len(sigmas)))
    if axis == "sigma":
        return tuple(sigmas)
    return tuple(log_snr(s, flow) for s in sigmas)


def log_snr(sigma: float, flow: bool) -> float:
    """Log signal-to-noise ratio at noise level `sigma`, with zero noise or zero signal replaced by 1e-4."""
    signal = max(1 - sigma, SIGMA_FLOOR) if flow else 1.0
    return 2 * math.log(signal / max(sigma, SIGMA_FLOOR))
