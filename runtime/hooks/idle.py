"""Lists that only the blocks read, such as text refiners: where all blocks are forecast as one, they are passed by.

That is what `discovery` proves of a list: with what the blocks add to their input known, the call returns the same to
the bit whatever the list makes. Parts of the blocks are another matter: some models add to streams between them.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import nn

from cachesmith.runtime.hooks.arguments import reader
from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.unit_call import TransformerCall
from cachesmith.runtime.models.adapters import adapter_for


def idle_members(
    transformer: nn.Module, call: TransformerCall
) -> Iterator[tuple[nn.Module, Callable[[Forward], Forward]]]:
    """Every block that may be passed by, and what to wrap its call in: it then returns its own streams."""
    if call.foresees is None:
        return
    for idle in adapter_for(transformer).idle:
        blocks = [*transformer.get_submodule(idle.path).children()]
        for block in blocks[: len(blocks) - idle.kept]:
            yield block, _passing(reader(block, idle.streams), call)


def _passing(read: Callable[..., tuple[Any, ...]], call: TransformerCall) -> Callable[[Forward], Forward]:
    def wrap(original: Forward) -> Forward:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (call.open and call.idles):
                return original(*args, **kwargs)
            values = read(args, kwargs)
            return values[0] if len(values) == 1 else values

        return forward

    return wrap
