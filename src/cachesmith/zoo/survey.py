"""What calls of tiny models tell of their classes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cachesmith.runtime import Adapter, discover
from cachesmith.zoo.tiny import Tiny

TIME = torch.tensor(500.0)


@dataclass(frozen=True)
class Finding:
    """What was found for one class: an adapter, or `why` there is none."""

    name: str
    adapter: Adapter | None = None
    why: str = ""


def survey(zoo: Mapping[str, Tiny], variants: Mapping[str, tuple[str, Tiny]]) -> Iterator[Finding]:
    """Call every tiny model, in every way it can be called, and yield what holds for the class."""
    for name, tiny in zoo.items():
        ways = [tiny, *(other for owner, other in variants.values() if owner == name)]
        yield _finding(name, ways)


def _finding(name: str, ways: list[Tiny]) -> Finding:
    try:
        found = [find(name, way) for way in ways]
    except Exception as error:
        # whatever another release of diffusers raises is a finding, not the end of the survey
        return Finding(name, why=f"{type(error).__name__}: {error}")
    if any(adapter != found[0] for adapter in found):
        return Finding(name, why="its blocks depend on how it is called, so every first call is looked at")
    return Finding(name, found[0])


def find(name: str, tiny: Tiny) -> Adapter:
    """Return the adapter of a tiny model, found by one call."""
    model, x = tiny.build(name), tiny.noise()
    discovery = discover(model, lambda: tiny.call(model, x, TIME))
    blocks = [call.place for call in discovery.chain.calls]
    with called_outside([(f"{p.path}.{p.index}", p.module) for p in blocks]) as outer, torch.no_grad():
        tiny.call(model, x, TIME)
    return replace(discovery.adapter, outer=topmost(outer))


def topmost(paths: set[str]) -> tuple[str, ...]:
    """Leave out what is below another path."""
    return tuple(sorted(p for p in paths if not any(p.startswith(f"{q}.") for q in paths)))


@contextmanager
def called_outside(blocks: list[tuple[str, nn.Module]]) -> Iterator[set[str]]:
    """Yield the paths of those submodules of blocks that are called while no block is."""
    inside, found = [0], set[str]()

    def entered(*_: Any) -> None:
        inside[0] += 1

    def left(*_: Any) -> None:
        inside[0] -= 1

    def called(path: str) -> Callable[..., None]:
        return lambda *_: None if inside[0] else found.add(path)

    with ExitStack() as stack:
        for path, block in blocks:
            stack.callback(block.register_forward_pre_hook(entered).remove)
            stack.callback(block.register_forward_hook(left, always_call=True).remove)
            for name, module in block.named_modules():
                if name:
                    stack.callback(module.register_forward_pre_hook(called(f"{path}.{name}")).remove)
        yield found
