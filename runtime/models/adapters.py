"""Where a transformer's blocks are: data, one entry per transformer class.

To support another model, add an entry to `ADAPTERS`; the conformance suite in `tests/runtime/models/test_adapters.py`
covers it from then on.
"""

from dataclasses import dataclass

from torch import nn

from cachesmith.policies import PolicyError

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
class Adapter:
    """How to find the units of one transformer class.

    `live` are the streams that are still read after the last block. The transformer's timestep argument times
    `timestep_scale`, plus `timestep_shift`, is the scheduler's timestep.
    """

    lists: tuple[BlockList, ...]
    live: tuple[str, ...] = ("hidden_states", *JOINED)
    timestep: str = "timestep"
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0


_IMAGE = ("hidden_states",)
_TEXT = ("encoder_hidden_states",)
_TEXT_IMAGE = (*_TEXT, *_IMAGE)
_IMAGE_TEXT = (*_IMAGE, *_TEXT)

_SELF = (ModuleSpan("attn", "attn1", "attn1"), ModuleSpan("mlp", "ff", "ff", tokenwise=True))
_SELF_CROSS = (*_SELF, ModuleSpan("cross", "attn2", "attn2"))
_SELF_CROSS_CONV = (_SELF[0], ModuleSpan("mlp", "ff", "ff"), _SELF_CROSS[-1])
_DOUBLE = (
    ModuleSpan("attn", "attn", "attn", _IMAGE_TEXT),
    ModuleSpan("mlp", "ff", "ff", tokenwise=True),
    ModuleSpan("mlp_context", "ff_context", "ff_context", _TEXT, optional=True, tokenwise=True),
)
_SINGLE = (ModuleSpan("single", "proj_mlp", "proj_out", JOINED, between=(("attn", JOINED),)),)
_SINGLE_SPLIT = (ModuleSpan("single", "proj_mlp", "proj_out", JOINED, between=(("attn", _IMAGE_TEXT),)),)

_WAN = Adapter(
    (
        BlockList(
            "blocks",
            _IMAGE,
            (
                ModuleSpan("attn", "attn1", "attn1"),
                ModuleSpan("cross", "attn2", "attn2"),
                ModuleSpan("mlp", "ffn", "ffn", tokenwise=True),
            ),
        ),
    )
)

ADAPTERS: dict[str, Adapter] = {
    "AuraFlowTransformer2DModel": Adapter(
        (
            BlockList("joint_transformer_blocks", _TEXT_IMAGE, _DOUBLE),
            BlockList(
                "single_transformer_blocks",
                JOINED,
                (
                    ModuleSpan("attn", "attn", "attn", JOINED),
                    ModuleSpan("mlp", "ff", "ff", JOINED, tokenwise=True),
                ),
            ),
        ),
        timestep_scale=1000.0,
    ),
    "ChromaTransformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _TEXT_IMAGE, _DOUBLE),
            BlockList("single_transformer_blocks", JOINED, _SINGLE),
        ),
        timestep_scale=1000.0,
    ),
    "CogVideoXTransformer3DModel": Adapter(
        (
            BlockList(
                "transformer_blocks",
                _IMAGE_TEXT,
                (
                    ModuleSpan("attn", "attn1", "attn1", _IMAGE_TEXT),
                    ModuleSpan("mlp", "ff", "ff", JOINED, tokenwise=True),
                ),
            ),
        )
    ),
    "CogView4Transformer2DModel": Adapter((BlockList("transformer_blocks", _IMAGE_TEXT),)),
    "DiTTransformer2DModel": Adapter((BlockList("transformer_blocks", _IMAGE, _SELF),)),
    "Flux2Transformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _TEXT_IMAGE, _DOUBLE),
            BlockList("single_transformer_blocks", JOINED, (ModuleSpan("single", "attn", "attn", JOINED),)),
        ),
        timestep_scale=1000.0,
    ),
    "FluxTransformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _TEXT_IMAGE, _DOUBLE),
            BlockList("single_transformer_blocks", _TEXT_IMAGE, _SINGLE),
        ),
        timestep_scale=1000.0,
    ),
    "HunyuanImageTransformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _IMAGE_TEXT, _DOUBLE),
            BlockList("single_transformer_blocks", _IMAGE_TEXT, _SINGLE_SPLIT),
        )
    ),
    "HunyuanVideoTransformer3DModel": Adapter(
        (
            BlockList("transformer_blocks", _IMAGE_TEXT, _DOUBLE),
            BlockList("single_transformer_blocks", _IMAGE_TEXT, _SINGLE_SPLIT),
        )
    ),
    "HunyuanVideo15Transformer3DModel": Adapter((BlockList("transformer_blocks", _IMAGE_TEXT, _DOUBLE),)),
    "LTXVideoTransformer3DModel": Adapter((BlockList("transformer_blocks", _IMAGE, _SELF_CROSS),)),
    "LongCatImageTransformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _TEXT_IMAGE, _DOUBLE),
            BlockList("single_transformer_blocks", _TEXT_IMAGE, _SINGLE),
        ),
        timestep_scale=1000.0,
    ),
    "Lumina2Transformer2DModel": Adapter(
        (
            BlockList(
                "layers",
                _IMAGE,
                (
                    ModuleSpan("attn", "attn", "attn"),
                    ModuleSpan("mlp", "feed_forward", "feed_forward", tokenwise=True),
                ),
            ),
        ),
        timestep_scale=-1000.0,
        timestep_shift=1000.0,
    ),
    "MochiTransformer3DModel": Adapter((BlockList("transformer_blocks", _IMAGE_TEXT),)),
    "OvisImageTransformer2DModel": Adapter(
        (
            BlockList("transformer_blocks", _TEXT_IMAGE),
            BlockList("single_transformer_blocks", _TEXT_IMAGE),
        ),
        timestep_scale=1000.0,
    ),
    "PixArtTransformer2DModel": Adapter((BlockList("transformer_blocks", _IMAGE, _SELF_CROSS),)),
    "QwenImageTransformer2DModel": Adapter(
        (
            BlockList(
                "transformer_blocks",
                _TEXT_IMAGE,
                (
                    ModuleSpan("attn", "attn", "attn", _IMAGE_TEXT),
                    ModuleSpan("mlp", "img_mlp", "img_mlp", tokenwise=True),
                    ModuleSpan("mlp_context", "txt_mlp", "txt_mlp", _TEXT, tokenwise=True),
                ),
            ),
        ),
        timestep_scale=1000.0,
    ),
    "SD3Transformer2DModel": Adapter(
        (
            BlockList(
                "transformer_blocks",
                _TEXT_IMAGE,
                (*_DOUBLE, ModuleSpan("attn_image", "attn2", "attn2", optional=True)),
            ),
        )
    ),
    "SanaTransformer2DModel": Adapter((BlockList("transformer_blocks", _IMAGE, _SELF_CROSS_CONV),)),
    "WanTransformer3DModel": _WAN,
    "ZImageTransformer2DModel": Adapter(
        (
            BlockList(
                "layers",
                _IMAGE,
                (
                    ModuleSpan("attn", "attention", "attention"),
                    ModuleSpan("mlp", "feed_forward", "feed_forward", tokenwise=True),
                ),
            ),
        ),
        timestep="t",
        timestep_scale=-1000.0,
        timestep_shift=1000.0,
    ),
}

KINDS = frozenset(
    span.group for adapter in ADAPTERS.values() for blocks in adapter.lists for span in blocks.modules
)
"""The groups of units `module` of all supported models together."""


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of `transformer`'s class; raise `PolicyError` listing the known ones."""
    name = type(transformer).__name__
    if is_compiled(transformer):
        raise PolicyError(
            "the transformer is compiled as a whole, so no step can be skipped; compile its blocks instead: "
            "transformer.compile_repeated_blocks(), or block.compile() for each"
        )
    if name not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise PolicyError(f"no adapter for {name}; known: {known}. Add one to runtime/models/adapters.py")
    return ADAPTERS[name]


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` or `module.compile()` was called."""
    return (
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
    )
