"""What a block could remember outside of its outputs, such as a cache of keys and values."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Marks = tuple[Any, ...]

DEPTH = 4
"""How deep objects are looked into."""


@dataclass(frozen=True)
class State:
    """Marks of everything mutable that a block was given, and of its own buffers, if any. Nothing is copied."""

    module: nn.Module | None
    arguments: dict[str, Any]
    given: dict[str, Marks]
    own: Marks

    @staticmethod
    def of(module: nn.Module | None, arguments: dict[str, Any]) -> "State":
        """Mark a block that is about to be called."""
        given = {name: _marks(value, DEPTH) for name, value in arguments.items()}
        return State(module, dict(arguments), given, _own(module))

    def changed(self) -> str:
        """Return the name of what the block has written to, or nothing."""
        for name, value in self.arguments.items():
            if _marks(value, DEPTH) != self.given[name]:
                return name
        return "" if _own(self.module) == self.own else "self"


def _own(module: nn.Module | None) -> Marks:
    """Buffers. Plain attributes are not told apart from tables that the first call makes and later ones only read."""
    return () if module is None else tuple((id(b), _written(b)) for b in module.buffers())


def _marks(value: Any, depth: int) -> Marks:
    if isinstance(value, Tensor):
        return (id(value), _written(value))
    if depth == 0 or value is None or isinstance(value, str | bytes | int | float | bool | type | nn.Module):
        return (id(value),) if isinstance(value, nn.Module) else (repr(value)[:80],)
    if isinstance(value, dict):
        return tuple((key, _marks(item, depth - 1)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_marks(item, depth - 1) for item in value)
    return tuple((key, _marks(item, depth - 1)) for key, item in getattr(value, "__dict__", {}).items())


def _written(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
