"""Wan and what is built like it."""

from typing import Any

import diffusers
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.experts import unipc, wan_vae
from tests.pipelines.parts import (
    CLIP,
    PLAIN,
    TinyPipeline,
    also,
    assemble,
    flow,
    picture,
    prompted,
    transformer,
)

ASK = prompted(PLAIN, guided=True, guidance_scale=4.0, **CLIP)


def seeing() -> dict[str, Any]:
    """An encoder of pictures of 4 x 4, and what makes these: 17 states of width 16."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4,
        patch_size=1,
    )
    processor = CLIPImageProcessor(crop_size={"height": 4, "width": 4}, size={"shortest_edge": 4})
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


def wan(name: str, model: str = "WanTransformer3DModel", scheduler: Any = unipc, **changes: Any) -> Any:
    """One expert."""

    def build() -> Any:
        config = {"in_channels": 16, "out_channels": 16} | changes
        eyes = seeing() if "image_dim" in changes else {}
        return assemble(
            name, transformer=transformer(model, **config), vae=wan_vae(), scheduler=scheduler(), **eyes
        )

    return build


def experts(name: str, in_channels: int = 16) -> Any:
    """Two experts, one for each part of the run."""

    def build() -> Any:
        config = {"in_channels": in_channels, "out_channels": 16}
        both = {
            part: transformer("WanTransformer3DModel", **config) for part in ("transformer", "transformer_2")
        }
        return assemble(name, vae=wan_vae(), scheduler=unipc(), boundary_ratio=0.875, **both)

    return build


def five_billion() -> Any:
    """The small Wan 2.2: a timestep for every token, and a finer autoencoder."""
    fine = wan_vae(
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    model = transformer("WanTransformer3DModel", in_channels=48, out_channels=48)
    return assemble("WanPipeline", transformer=model, vae=fine, scheduler=unipc(), expand_timesteps=True)


WAN: dict[str, TinyPipeline] = {
    "WanPipeline": TinyPipeline(wan("WanPipeline"), ASK),
    "WanPipeline (2.2)": TinyPipeline(experts("WanPipeline"), ASK),
    "WanPipeline (2.2, 5B)": TinyPipeline(
        five_billion,
        prompted(PLAIN, guided=True, guidance_scale=4.0, height=32, width=32, num_frames=5),
    ),
    "WanImageToVideoPipeline": TinyPipeline(
        wan("WanImageToVideoPipeline", in_channels=36, image_dim=16),
        also(ASK, image=picture),
    ),
    "WanImageToVideoPipeline (first and last frame)": TinyPipeline(
        wan("WanImageToVideoPipeline", in_channels=36, image_dim=16, pos_embed_seq_len=34),
        also(ASK, image=picture, last_image=lambda i: picture(i + 1)),
    ),
    "WanImageToVideoPipeline (2.2)": TinyPipeline(
        experts("WanImageToVideoPipeline", in_channels=36), also(ASK, image=picture)
    ),
    "WanVACEPipeline": TinyPipeline(
        wan("WanVACEPipeline", "WanVACETransformer3DModel", vace_in_channels=96),
        also(ASK, video=lambda i: [picture(i)] * 5),
    ),
    "WanVideoToVideoPipeline": TinyPipeline(
        wan("WanVideoToVideoPipeline"),
        also(
            prompted(PLAIN, guided=True, guidance_scale=4.0, height=16, width=16, strength=0.75),
            video=lambda i: [picture(i)] * 5,
        ),
    ),
    "SkyReelsV2Pipeline": TinyPipeline(
        wan(
            "SkyReelsV2Pipeline",
            "SkyReelsV2Transformer3DModel",
            lambda: diffusers.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True),
        ),
        ASK,
    ),
    "ChronoEditPipeline": TinyPipeline(
        wan("ChronoEditPipeline", "ChronoEditTransformer3DModel", flow, in_channels=36, image_dim=16),
        also(ASK, image=picture),
    ),
    "AnyFlowPipeline": TinyPipeline(
        wan(
            "AnyFlowPipeline",
            "AnyFlowTransformer3DModel",
            lambda: diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
        ),
        ASK,
    ),
}
