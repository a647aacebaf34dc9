"""Where the blocks of a transformer are, and what flows through them: data."""

from dataclasses import dataclass

from torch import nn

JOINED = ("tokens",)
"""All streams concatenated along the tokens, in the order of the list before. Calls take it as their first argument."""


@dataclass(frozen=True)
class ModuleSpan:
    """A cached part of a block: from the call of submodule `start` to the return of submodule `stop`.

    `streams` are the argument names of `start` that make up the unit's input; a name it does not have means its first
    argument. The unit's output is what `stop` returns, one tensor per stream. Submodules in `between`, with their
    streams, are bypassed together with them. An `optional` span is one that some blocks of the list lack. A `tokenwise`
    one has one stream and one submodule, which treats every token [B, N, D] by itself.
    """

    group: str
    start: str
    stop: str
    streams: tuple[str, ...] = ("hidden_states",)
    between: tuple[tuple[str, tuple[str, ...]], ...] = ()
    optional: bool = False
    tokenwise: bool = False

    @property
    def members(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """All submodules of the span with the streams they read, in call order."""
        ends = ((self.start, self.streams), (self.stop, self.streams))
        return tuple(dict.fromkeys((ends[0], *self.between, ends[1])))


@dataclass(frozen=True)
class BlockList:
    """A `ModuleList` of equal blocks: argument names of its streams, in the order of a block's return value.

    `modules` covers all that is worth caching in a block; without it, units are runs of whole blocks only.
    """

    path: str
    streams: tuple[str, ...]
    modules: tuple[ModuleSpan, ...] = ()


@dataclass(frozen=True)
class IdleList:
    """A list whose outputs cannot matter once the output of all blocks is known; but for its last `kept` blocks.

    `streams` are named as in `BlockList`: returning them unchanged takes the place of computing.
    """

    path: str
    streams: tuple[str, ...]
    kept: int = 0


@dataclass(frozen=True)
class Adapter:
    """How to find the units of one transformer class.

    `live` are the streams that are still read after the last block; `timestep` is the name of the transformer's
    timestep argument. `idle` lists need not be computed while all blocks are forecast. With `skips`, blocks read what
    earlier blocks made, so that they are cached all together or not at all. `works`: the transformer does something
    between blocks. `empty` streams are None. `outer` are submodules of blocks that the transformer calls itself.
    """

    lists: tuple[BlockList, ...]
    live: tuple[str, ...] = ("hidden_states", *JOINED)
    timestep: str = "timestep"
    idle: tuple[IdleList, ...] = ()
    skips: bool = False
    works: bool = False
    empty: tuple[str, ...] = ()
    outer: tuple[str, ...] = ()


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` or `module.compile()` was called."""
    return (
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
    )
