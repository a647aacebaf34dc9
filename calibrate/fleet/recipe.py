"""How a worker makes its shard: it loads the pipeline itself, and makes sure that it is the same one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.work_folder import digest_of
from cachesmith.policies import ModelKey, PolicyError
from cachesmith.runtime.models.adapter import Adapter
from cachesmith.runtime.models.adapters import remember
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.fingerprint import model_key
from cachesmith.sampling.render import Renderer

Loader = Callable[[str], Any]
"""Loads the pipeline onto a device, such as `cuda:1`. It is pickled: a function of a module, or a `partial` of one."""


@dataclass(frozen=True)
class Recipe:
    """What a worker is told when it begins. print: of the pipeline, see `print_of`; threads: of a CPU; adapters: of its
    denoisers, by name."""

    load: Loader
    device: str
    steps: int
    where: Placement
    common: dict[str, Any]
    groups: dict[int, Group]
    folder: Path
    print: str
    threads: int | None = None
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def shard(self) -> Shard:
        """Load the pipeline. Raises `PolicyError` where it is another one than is calibrated."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        pipe = self.load(self.device)
        pipe.set_progress_bar_config(disable=True)
        for name, adapter in self.adapters.items():
            remember(denoisers(pipe)[name], adapter)
        frozen(pipe)
        if print_of(pipe) != self.print:
            raise PolicyError(
                "what a worker loads is not the pipeline that is calibrated (weights, dtype or scheduler); "
                "give a loader that makes it as it is"
            )
        renderer = Renderer(pipe, self.steps, self.where.batch, **self.common)
        return Shard(renderer, self.groups, self.folder, self.where)


def model_keys(pipe: Any) -> dict[str, ModelKey]:
    """Of every denoiser, by name. Reads their weights."""
    return {name: model_key(denoiser, pipe) for name, denoiser in denoisers(pipe).items()}


def print_of(pipe: Any, models: Mapping[str, ModelKey] | None = None) -> str:
    """A short name for everything about a pipeline that samples depend on. models: its `model_keys`, if known."""
    scheduler = pipe.scheduler
    # diffusers puts one list in another order in every process
    settings = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    keys = model_keys(pipe) if models is None else models
    return digest_of(*keys.values(), type(scheduler).__name__, settings, str(pipe.transformer.dtype))


def frozen(pipe: Any) -> list[torch.nn.Parameter]:
    """Compute no gradients of any component's parameters; return those that had them."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    return trainable
