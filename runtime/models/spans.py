"""What is worth caching inside a block, of the families that matter: data, written by hand.

Everything else that is known of a transformer class is found by calling it: `cachesmith adapters --check`. The group of
a span is the name that policies use.
"""

from collections.abc import Mapping
from types import MappingProxyType

from cachesmith.runtime.models.adapter import JOINED, ModuleSpan

_Spans = Mapping[str, tuple[ModuleSpan, ...]]
"""By the path of the list of blocks."""

_TEXT = ("encoder_hidden_states",)
_IMAGE_TEXT = ("hidden_states", *_TEXT)

_SELF = (ModuleSpan("attn", "attn1", "attn1"), ModuleSpan("mlp", "ff", "ff", tokenwise=True))
_SELF_CROSS = (*_SELF, ModuleSpan("cross", "attn2", "attn2"))
_SELF_CROSS_CONV = (_SELF[0], ModuleSpan("mlp", "ff", "ff"), _SELF_CROSS[-1])
_WAN = (
    ModuleSpan("attn", "attn1", "attn1"),
    ModuleSpan("cross", "attn2", "attn2"),
    ModuleSpan("mlp", "ffn", "ffn", tokenwise=True),
)
_DOUBLE = (
    ModuleSpan("attn", "attn", "attn", _IMAGE_TEXT),
    ModuleSpan("mlp", "ff", "ff", tokenwise=True),
    ModuleSpan("mlp_context", "ff_context", "ff_context", _TEXT, optional=True, tokenwise=True),
)
_SINGLE = (ModuleSpan("single", "proj_mlp", "proj_out", JOINED, between=(("attn", JOINED),)),)
_SINGLE_SPLIT = (ModuleSpan("single", "proj_mlp", "proj_out", JOINED, between=(("attn", _IMAGE_TEXT),)),)

_FLUX = {"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE}
_HUNYUAN = {"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE_SPLIT}

SPANS: Mapping[str, _Spans] = MappingProxyType(
    {
        "AuraFlowTransformer2DModel": {
            "joint_transformer_blocks": _DOUBLE,
            "single_transformer_blocks": (
                ModuleSpan("attn", "attn", "attn", JOINED),
                ModuleSpan("mlp", "ff", "ff", JOINED, tokenwise=True),
            ),
        },
        "ChromaTransformer2DModel": _FLUX,
        "CogVideoXTransformer3DModel": {
            "transformer_blocks": (
                ModuleSpan("attn", "attn1", "attn1", _IMAGE_TEXT),
                ModuleSpan("mlp", "ff", "ff", JOINED, tokenwise=True),
            )
        },
        "DiTTransformer2DModel": {"transformer_blocks": _SELF},
        "Flux2Transformer2DModel": {
            "transformer_blocks": _DOUBLE,
            "single_transformer_blocks": (ModuleSpan("single", "attn", "attn", JOINED),),
        },
        "FluxTransformer2DModel": _FLUX,
        "HunyuanImageTransformer2DModel": _HUNYUAN,
        "HunyuanVideo15Transformer3DModel": {"transformer_blocks": _DOUBLE},
        "HunyuanVideoTransformer3DModel": _HUNYUAN,
        "LTXVideoTransformer3DModel": {"transformer_blocks": _SELF_CROSS},
        "LongCatImageTransformer2DModel": _FLUX,
        "Lumina2Transformer2DModel": {
            "layers": (
                ModuleSpan("attn", "attn", "attn"),
                ModuleSpan("mlp", "feed_forward", "feed_forward", tokenwise=True),
            )
        },
        "PixArtTransformer2DModel": {"transformer_blocks": _SELF_CROSS},
        "QwenImageTransformer2DModel": {
            "transformer_blocks": (
                ModuleSpan("attn", "attn", "attn", _IMAGE_TEXT),
                ModuleSpan("mlp", "img_mlp", "img_mlp", tokenwise=True),
                ModuleSpan("mlp_context", "txt_mlp", "txt_mlp", _TEXT, tokenwise=True),
            )
        },
        "SD3Transformer2DModel": {
            "transformer_blocks": (*_DOUBLE, ModuleSpan("attn_image", "attn2", "attn2", optional=True))
        },
        "SanaTransformer2DModel": {"transformer_blocks": _SELF_CROSS_CONV},
        "WanTransformer3DModel": {"blocks": _WAN},
        "ZImageTransformer2DModel": {
            "layers": (
                ModuleSpan("attn", "attention", "attention"),
                ModuleSpan("mlp", "feed_forward", "feed_forward", tokenwise=True),
            )
        },
    }
)
