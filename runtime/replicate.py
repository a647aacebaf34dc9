"""Workers that share one set of weights."""

import copy
import warnings
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.patch import strip
from cachesmith.runtime.models.fingerprint import attention_backends
from cachesmith.runtime.models.foreign_hooks import diffusers_hooks, has_accelerate_hook
from cachesmith.runtime.models.snapshot import look

Pipeline = TypeVar("Pipeline")

SWITCHING = {"_native_cudnn", "_native_efficient", "_native_flash", "_native_math"}
"""Attention backends of diffusers that choose torch's kernel for the whole process, around every call."""


def replicate(pipe: Pipeline) -> Pipeline:
    """Return a worker: a pipeline of its own on the weights of `pipe`, which may sample at the same time as `pipe`.

    All parameters and buffers are shared, everything else is a copy: modules, scheduler, tokenizers, the state of a
    request. So a server with one set of weights and four threads is

        workers = [cachesmith.replicate(pipe) for _ in range(4)]

    with `with cachesmith.apply(worker, policy): ...` in each thread. A worker's pictures are to the bit those
    that `pipe` makes, and it holds no more device memory than a request does. Compiled modules are eager in a worker:
    compile them there. Changes of shared weights in place (`fuse_lora`) change them for all; LoRAs that are loaded into
    a worker are its own.

    Warns where the attention backend chooses a kernel for the whole process: threads then change each other's, and a
    picture depends on what else is drawn.

    Raises `PolicyError` where hooks move or cast weights (offloading, layerwise casting): they would do so for all
    workers at once.
    """
    modules = [
        module for part in vars(pipe).values() if isinstance(part, nn.Module) for module in part.modules()
    ]
    for module in modules:
        if has_accelerate_hook(module) or diffusers_hooks(module):
            raise PolicyError(
                f"{type(module).__name__} has hooks that move, cast or cache (offloading, enable_layerwise_casting, "
                "enable_cache), which workers cannot share; replicate the pipeline first, without them"
            )
    _warn_of_shared_kernels([part for part in vars(pipe).values() if isinstance(part, nn.Module)])
    worker = copy.deepcopy(pipe, {id(tensor): tensor for tensor in _tensors(modules)})
    strip(worker)
    for part in [*vars(worker).values()]:
        for owner in part.modules() if isinstance(part, nn.Module) else (part,):
            if hasattr(owner, "__dict__"):
                strip(owner)
    return worker


def _warn_of_shared_kernels(networks: list[nn.Module]) -> None:
    switching = {
        name for network in networks for name in attention_backends(look(network)).split()
    } & SWITCHING
    if switching:
        warnings.warn(
            f"the attention backend {', '.join(sorted(switching))} chooses its kernel for the whole process: workers "
            'in threads change each other\'s; set_attention_backend("native"), or give every worker a process',
            RuntimeWarning,
            stacklevel=3,
        )


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    """What the modules compute with."""
    for module in modules:
        for held in (module._parameters, module._buffers):
            yield from (tensor for tensor in held.values() if tensor is not None)
