"""Where a transformer's blocks are: data, one entry per transformer class.

To support another model, add an entry to `ADAPTERS`; the conformance suite in `tests/runtime/test_adapters.py`
covers it from then on.
"""

from dataclasses import dataclass

from torch import nn

from cachesmith.policies import PolicyError


@dataclass(frozen=True)
class ModuleSpan:
    """A cached part of a block: from the call of submodule `start` to the return of submodule `stop`.

    `streams` are the argument names of `start` that make up the unit's input; the unit's output is what `stop`
    returns, one tensor or one per stream. Submodules in `between` are bypassed together with them.
    """

    group: str
    start: str
    stop: str
    streams: tuple[str, ...] = ("hidden_states",)
    between: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """All submodules of the span, in call order."""
        return tuple(dict.fromkeys((self.start, *self.between, self.stop)))


@dataclass(frozen=True)
class BlockList:
    """A `ModuleList` of equal blocks: argument names of its streams, and their order in a block's return value."""

    path: str
    streams: tuple[str, ...]
    modules: tuple[ModuleSpan, ...]


@dataclass(frozen=True)
class Adapter:
    """How to find the units of one transformer class.

    `live` are the streams that are still read after the last block. The pipeline's timestep argument times
    `timestep_scale` is the scheduler's timestep.
    """

    lists: tuple[BlockList, ...]
    live: tuple[str, ...] = ("hidden_states",)
    timestep: str = "timestep"
    timestep_scale: float = 1.0


_BOTH = ("encoder_hidden_states", "hidden_states")

_DIT_MODULES = (
    ModuleSpan("attn", "attn1", "attn1"),
    ModuleSpan("mlp", "ff", "ff"),
)
_FLUX_DOUBLE_MODULES = (
    ModuleSpan("attn", "attn", "attn", streams=("hidden_states", "encoder_hidden_states")),
    ModuleSpan("mlp", "ff", "ff"),
    ModuleSpan("mlp_context", "ff_context", "ff_context"),
)
_FLUX_SINGLE_MODULES = (ModuleSpan("single", "proj_mlp", "proj_out", streams=("input",), between=("attn",)),)

ADAPTERS: dict[str, Adapter] = {
    "DiTTransformer2DModel": Adapter(
        lists=(BlockList("transformer_blocks", ("hidden_states",), _DIT_MODULES),),
    ),
    "FluxTransformer2DModel": Adapter(
        lists=(
            BlockList("transformer_blocks", _BOTH, _FLUX_DOUBLE_MODULES),
            BlockList("single_transformer_blocks", _BOTH, _FLUX_SINGLE_MODULES),
        ),
        timestep_scale=1000.0,
    ),
}


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of `transformer`'s class; raise `PolicyError` listing the known ones."""
    name = type(transformer).__name__
    if name == "OptimizedModule":
        raise PolicyError(
            "the transformer is compiled as a whole, so no step can be skipped; compile its blocks instead: "
            "pipe.transformer.compile_repeated_blocks()"
        )
    if name not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise PolicyError(f"no adapter for {name}; known: {known}. Add one to runtime/adapters.py")
    return ADAPTERS[name]
