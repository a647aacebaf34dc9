"""The adapters of all known transformer classes, and those that users add."""

from types import MappingProxyType

from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.models.adapter import Adapter, is_compiled
from cachesmith.runtime.models.rows import read_rows

_REGISTERED: dict[str, Adapter] = {}
_FOUND = "_cachesmith_adapter"

ADAPTERS = MappingProxyType(read_rows())
"""By the name of the transformer's class."""

KINDS = frozenset(
    span.group for adapter in ADAPTERS.values() for blocks in adapter.lists for span in blocks.modules
)
"""The groups of units `module` of all supported models together."""


def register(transformer: type[nn.Module] | str, adapter: Adapter) -> None:
    """Have transformers of this class cached as `adapter` says, from now on and instead of what is known of it."""
    _REGISTERED[transformer if isinstance(transformer, str) else transformer.__name__] = adapter


def remember(transformer: nn.Module, adapter: Adapter) -> None:
    """Have this one transformer cached as `adapter` says: what a call of it told."""
    vars(transformer)[_FOUND] = adapter


def known_adapter(transformer: nn.Module) -> Adapter | None:
    """Return the adapter of `transformer`: registered, found by a call of it, or known of its class; else None.

    Raises `PolicyError` when it is compiled as a whole.
    """
    name = type(transformer).__name__
    if is_compiled(transformer):
        raise PolicyError(
            "the transformer is compiled as a whole, so no step can be skipped; compile its blocks instead: "
            "transformer.compile_repeated_blocks(), or block.compile() for each"
        )
    found: Adapter | None = vars(transformer).get(_FOUND)
    return _REGISTERED.get(name) or found or ADAPTERS.get(name)


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of `transformer`; raise `PolicyError` when none is known."""
    adapter = known_adapter(transformer)
    if adapter is None:
        raise PolicyError(
            f"no adapter for {type(transformer).__name__}; have one found by a call of it, "
            "cachesmith.runtime.learn(transformer, call), or write one and pass it to cachesmith.runtime.register"
        )
    return adapter
