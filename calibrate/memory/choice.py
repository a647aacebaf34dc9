"""Samples at once and what rests where, chosen by the plan from the memory that is free."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import torch

from cachesmith.calibrate.closed_loop.offload import is_streamed
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.memory.plan import largest_sizes, placement_of, planned_phases
from cachesmith.calibrate.memory.sizes import Sizes
from cachesmith.calibrate.work_folder import Memo, digest_of
from cachesmith.policies import PolicyError
from cachesmith.progress import tell
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer, device_of
from cachesmith.sampling.requests import Request


def free_memory(device: torch.device) -> int | None:
    """Bytes of a device that a calibration may fill, those of this process included; None where they have no limit.

    A twentieth is left to kernels and to the allocator's gaps.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) * 19 // 20


def choose(pipe: Any, requests: Sequence[Request], config: CalibrationConfig, key: str) -> Placement:
    """What fits the device with what `config` asks for, and says so.

    It is kept in the work folder under `key`, and on the same kind of device chosen but once: sums depend, in their
    last digits, on how samples are batched. Raises `PolicyError` where blocks have to be computed twice for their
    gradients, and are not to be.
    """
    device, streamed = device_of(pipe), any(map(is_streamed, denoisers(pipe).values()))
    if streamed:
        config = _as_streamed(config)
    free = None if config.space == "rfc" else free_memory(device)
    if free is None:
        return replace(placement_of(config, None, None), graph_on_host=streamed)
    memo, offload = Memo(config.work / "memory.jsonl"), bool(getattr(pipe, "_all_hooks", ()))
    name = digest_of(
        key,
        config.batch,
        config.gradient_checkpointing,
        config.budgets,
        config.workers,
        offload,
        _kind(device),
    )
    known = memo.get(name)
    if known is None:
        sizes = _sizes(Renderer(pipe, 2, 1, **config.common), requests)
        where = placement_of(config, sizes, free, offload)
        where = replace(where, graph_on_host=where.graph_on_host or streamed)
        memo.put(name, [float(each) for each in astuple(where)])
        if sizes is not None:
            most = max(phase.device for phase in planned_phases(config, sizes, where))
            tell(
                f"memory: {where}; {where.resting}; at most {most / 1e9:.3g} of {free / 1e9:.3g} GB on the device"
            )
        return where
    batch, gradient_batch, *flags = known
    return Placement(int(batch), int(gradient_batch), *map(bool, flags))


def _as_streamed(config: CalibrationConfig) -> CalibrationConfig:
    if config.gradient_checkpointing is False:
        raise PolicyError(
            "the denoiser's weights come onto the device part by part, so its blocks have to be computed twice for "
            "their gradients: leave out --no-gradient-checkpointing, or use `enable_model_cpu_offload`"
        )
    return replace(config, gradient_checkpointing=True)


def _kind(device: torch.device) -> tuple[str, int]:
    if device.type != "cuda":
        return str(device), 0
    found = torch.cuda.get_device_properties(device)
    return found.name, found.total_memory


def _sizes(renderer: Renderer, requests: Sequence[Request]) -> Sizes | None:
    try:
        return largest_sizes(renderer, requests)
    except Exception as error:  # whatever a foreign model makes of the meta device
        tell(
            f"memory: this model tells no sizes ({type(error).__name__}), so samples are halved where it runs out"
        )
        return None
