"""The same yardstick for every tool: work done, bytes held, and a pipeline put back as it was."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request
from contest.contestant import Contestant, Gauge

INSIDE = ("_modules", "_forward_hooks", "_forward_pre_hooks")
"""Dictionaries of a module that tools write into."""


@dataclass
class Meter:
    """`work`: multiply-adds of the blocks' linear layers; `peak`: the most bytes a cache held after a call.

    `nfc`: what the tool itself counted, if it does.
    """

    work: float = 0.0
    peak: int = 0
    nfc: float | None = None


def block_layers(transformer: nn.Module) -> list[nn.Linear]:
    """Return the linear layers inside the blocks."""
    lists = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [m for blocks in lists for m in blocks.modules() if isinstance(m, nn.Linear)]


@contextmanager
def counted(networks: Collection[nn.Module]) -> Iterator[Meter]:
    """Count the work of all denoisers.

    To be entered before a tool: a layer it has skipped is called and does nothing. Layers of modulations see one vector
    a sample and no tokens: they cost next to nothing, and no method skips them alike.
    """
    meter = Meter()

    def counting(layer: nn.Linear, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def count(x: torch.Tensor) -> torch.Tensor:
            if x.ndim > 2:
                meter.work += x.numel() * float(layer.out_features)
            return forward(x)

        return count

    with ExitStack() as stack:
        for layer in chain.from_iterable(map(block_layers, networks)):
            stack.enter_context(patched(layer, "forward", counting(layer, layer.forward)))
        yield meter


@contextmanager
def watched(networks: Collection[nn.Module], gauge: Gauge, meter: Meter) -> Iterator[None]:
    """Look at a tool's cache after every call, and ask for its own count in the end. To be entered after the tool."""

    def look(*_: Any) -> None:
        meter.peak = max(meter.peak, gauge.held())

    handles = [network.register_forward_hook(look) for network in networks]
    try:
        yield
        meter.nfc = None if gauge.nfc is None else gauge.nfc()
    finally:
        for handle in handles:
            handle.remove()


def play(renderer: Renderer, contestant: Contestant, requests: tuple[Request, ...]) -> tuple[Pictures, Meter]:
    """Sample `requests` with a contestant's change in place, and leave the pipeline as it was before."""
    networks = denoisers(renderer.pipe).values()
    with (
        undone(renderer.pipe),
        counted(networks) as meter,
        contestant.enter(renderer) as gauge,
        watched(networks, gauge, meter),
    ):
        # a method that is fitted on entry has sampled by now
        meter.work = 0.0
        pictures = renderer(requests)
    return pictures, meter


@contextmanager
def undone(pipe: Any) -> Iterator[None]:
    """Put back every attribute that a tool sets on the pipeline, its class, a denoiser or a part of it."""
    networks = denoisers(pipe).values()
    modules = [module for network in networks for module in network.modules()]
    processors = [m.processor for m in modules if hasattr(getattr(m, "processor", None), "__dict__")]
    kept = [vars(thing) for thing in (pipe, *modules, *processors)]
    kept += [vars(module)[name] for module in modules for name in INSIDE]
    before = [dict(attributes) for attributes in kept]
    classes = {cls: dict(vars(cls)) for cls in (type(pipe), *map(type, networks))}
    try:
        yield
    finally:
        for attributes, old in zip(kept, before, strict=True):
            attributes.clear()
            attributes.update(old)
        for cls, old in classes.items():
            _restore_class(cls, old)


def _restore_class(cls: type, before: Mapping[str, Any]) -> None:
    for name in set(vars(cls)) - set(before):
        delattr(cls, name)
    for name, value in before.items():
        if vars(cls)[name] is not value:
            setattr(cls, name, value)


def tensor_bytes(*roots: object) -> int:
    """Bytes of the tensors reachable from `roots` through containers and plain objects; modules are not entered."""
    stack, seen, storages = list(roots), set[int](), dict[int, int]()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (nn.Module, type, str, int, float)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, Mapping):
            stack.extend(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            stack.extend(thing)
        elif hasattr(thing, "__dict__") and not callable(thing):
            stack.extend(vars(thing).values())
    return sum(storages.values())
