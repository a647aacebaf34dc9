"""Text to image, and its edits, besides FLUX."""

from typing import Any

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance

from cachesmith.zoo.tiny import fill_zeros
from tests.pipelines.parts import (
    MASKED,
    PLAIN,
    SIDE,
    WORDS,
    Made,
    TinyPipeline,
    also,
    assemble,
    flow,
    hole,
    kl,
    mask,
    picture,
    prompted,
    text,
    transformer,
)
from tests.pipelines.pooling import PoolingVAE

TRUE: Made = {"prompt_embeds": text, "prompt_attention_mask": lambda i: mask(dtype=torch.bool)}
LISTED: Made = {"prompt_embeds": text, "prompt_embeds_mask": lambda i: mask()}


def simple(
    name: str, model: str, blocks: int = 1, scheduler: Any = flow, channels: int = 4, **changes: Any
) -> Any:
    """A transformer of the class `model`, an autoencoder of pictures, a sampler."""

    def build() -> Any:
        return assemble(
            name, transformer=transformer(model, **changes), vae=kl(channels, blocks), scheduler=scheduler()
        )

    return build


def qwen_vae() -> Any:
    """An autoencoder of videos, for pictures of a single frame."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen(name: str, pooling: bool = False) -> Any:
    """Pictures that are edited want an autoencoder that makes few latents of them."""

    def build() -> Any:
        vae = PoolingVAE() if pooling else qwen_vae()
        model = transformer("QwenImageTransformer2DModel", in_channels=16, out_channels=4)
        return assemble(name, transformer=model, vae=vae, scheduler=flow())

    return build


def qwen_asked(**common: Any) -> Any:
    """Two guided calls a step, pictures of 32 x 32."""
    return prompted(LISTED, guided=True, true_cfg_scale=3.0, height=32, width=32, **common)


def edit_asked(i: int) -> dict[str, Any]:
    """Pictures of 128 x 128: the one that is edited has 1024 x 1024 whatever is given, and few latents."""
    return prompted(LISTED, guided=True, true_cfg_scale=3.0, height=128, width=128)(i)


def sana(name: str, scheduler: Any = flow, **changes: Any) -> Any:
    """An autoencoder with attention that is linear."""

    def build() -> Any:
        settings: dict[str, Any] = {
            "attention_head_dim": 2,
            "latent_channels": 4,
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
        }
        for side in ("encoder", "decoder"):
            settings |= {
                f"{side}_block_types": ("ResBlock", "EfficientViTBlock"),
                f"{side}_block_out_channels": (8, 8),
                f"{side}_qkv_multiscales": ((), (5,)),
                f"{side}_layers_per_block": (1, 1),
            }
        vae = diffusers.AutoencoderDC(**settings)
        model = transformer("SanaTransformer2DModel", patch_size=1, **changes)
        return assemble(name, transformer=model, vae=vae, scheduler=scheduler())

    return build


def hunyuan_image() -> Any:
    """Two guiders: for prompts with text in quotes, and for those without."""
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=1.0,
        spatial_compression_ratio=2,
        sample_size=16,
    )
    model = transformer("HunyuanImageTransformer2DModel", text_embed_2_dim=32)
    guiders = {name: AdaptiveProjectedMixGuidance(enabled=True) for name in ("guider", "ocr_guider")}
    return assemble("HunyuanImagePipeline", transformer=model, vae=vae, scheduler=flow(), **guiders)


def sd3_controlnet() -> Any:
    """A ControlNet of the transformer's shape."""
    net = diffusers.SD3ControlNetModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    fill_zeros(net)
    return assemble(
        "StableDiffusion3ControlNetPipeline",
        transformer=transformer("SD3Transformer2DModel"),
        vae=kl(blocks=2),
        scheduler=flow(),
        controlnet=net,
    )


def two_texts(i: int) -> dict[str, Any]:
    """What HunyuanDiT is asked."""
    return prompted(
        {
            "prompt_embeds": lambda i: text(i, 4, 8),
            "prompt_attention_mask": lambda i: mask(4),
            "prompt_embeds_2": lambda i: text(i, 4, 8),
            "prompt_attention_mask_2": lambda i: mask(4),
        },
        guided=True,
        guidance_scale=4.0,
        original_size=(16, 16),
        use_resolution_binning=False,
        **SIDE,
    )(i)


LONE: Made = {"prompt_embeds": lambda i: [text(i)[0]]}
IMAGE: dict[str, TinyPipeline] = {
    "DiTPipeline": TinyPipeline(
        simple("DiTPipeline", "DiTTransformer2DModel", 2, diffusers.DDIMScheduler),
        lambda i: {"class_labels": i, "guidance_scale": 3.0},
    ),
    "QwenImagePipeline": TinyPipeline(qwen("QwenImagePipeline"), qwen_asked()),
    "QwenImageImg2ImgPipeline": TinyPipeline(
        qwen("QwenImageImg2ImgPipeline"), also(qwen_asked(strength=0.75), image=lambda i: picture(i, 32))
    ),
    "QwenImageInpaintPipeline": TinyPipeline(
        qwen("QwenImageInpaintPipeline"),
        also(qwen_asked(strength=0.75), image=lambda i: picture(i, 32), mask_image=lambda i: hole(32)),
    ),
    "QwenImageEditPipeline": TinyPipeline(
        qwen("QwenImageEditPipeline", pooling=True), also(edit_asked, image=lambda i: picture(i, 32))
    ),
    "QwenImageEditPlusPipeline": TinyPipeline(
        qwen("QwenImageEditPlusPipeline", pooling=True), also(edit_asked, image=lambda i: picture(i, 32))
    ),
    "StableDiffusion3Pipeline": TinyPipeline(
        simple("StableDiffusion3Pipeline", "SD3Transformer2DModel", 2), prompted(WORDS, guided=True, **SIDE)
    ),
    "StableDiffusion3Img2ImgPipeline": TinyPipeline(
        simple("StableDiffusion3Img2ImgPipeline", "SD3Transformer2DModel", 2),
        also(prompted(WORDS, guided=True, strength=0.75, **SIDE), image=picture),
    ),
    "StableDiffusion3InpaintPipeline": TinyPipeline(
        simple(
            "StableDiffusion3InpaintPipeline",
            "SD3Transformer2DModel",
            2,
            channels=16,
            in_channels=16,
            out_channels=16,
        ),
        also(prompted(WORDS, guided=True, strength=0.75, **SIDE), image=picture, mask_image=lambda i: hole()),
    ),
    "StableDiffusion3ControlNetPipeline": TinyPipeline(
        sd3_controlnet, also(prompted(WORDS, guided=True, **SIDE), control_image=picture)
    ),
    "SanaPipeline": TinyPipeline(
        sana("SanaPipeline"),
        prompted(
            MASKED, guided=True, negative_prompt=None, use_resolution_binning=False, height=32, width=32
        ),
    ),
    "PixArtSigmaPipeline": TinyPipeline(
        simple("PixArtSigmaPipeline", "PixArtTransformer2DModel", 2, diffusers.DPMSolverMultistepScheduler),
        prompted(MASKED, guided=True, negative_prompt=None, use_resolution_binning=False, **SIDE),
    ),
    "AuraFlowPipeline": TinyPipeline(
        simple("AuraFlowPipeline", "AuraFlowTransformer2DModel", 2), prompted(MASKED, guided=True, **SIDE)
    ),
    "ChromaPipeline": TinyPipeline(
        simple("ChromaPipeline", "ChromaTransformer2DModel", in_channels=16),
        prompted(TRUE, guided=True, **SIDE),
    ),
    "ChromaImg2ImgPipeline": TinyPipeline(
        simple("ChromaImg2ImgPipeline", "ChromaTransformer2DModel", in_channels=16),
        also(prompted(MASKED, guided=True, strength=0.75, **SIDE), image=picture),
    ),
    "Lumina2Pipeline": TinyPipeline(
        simple("Lumina2Pipeline", "Lumina2Transformer2DModel", 4),
        prompted(MASKED, guided=True, height=64, width=64),
    ),
    "LuminaPipeline": TinyPipeline(
        simple("LuminaPipeline", "LuminaNextDiT2DModel", 4, learn_sigma=True),
        prompted(MASKED, guided=True, height=64, width=64),
    ),
    "CogView4Pipeline": TinyPipeline(
        simple("CogView4Pipeline", "CogView4Transformer2DModel", 2), prompted(PLAIN, guided=True, **SIDE)
    ),
    "CogView3PlusPipeline": TinyPipeline(
        simple(
            "CogView3PlusPipeline",
            "CogView3PlusTransformer2DModel",
            2,
            diffusers.CogVideoXDDIMScheduler,
            out_channels=4,
        ),
        prompted(PLAIN, guided=True, **SIDE),
    ),
    "HunyuanImagePipeline": TinyPipeline(
        hunyuan_image,
        prompted(
            {**LISTED, "prompt_embeds_2": text, "prompt_embeds_mask_2": lambda i: mask()},
            guided=True,
            **SIDE,
        ),
    ),
    "HunyuanDiTPipeline": TinyPipeline(
        simple("HunyuanDiTPipeline", "HunyuanDiT2DModel", 2, diffusers.DDPMScheduler), two_texts
    ),
    "BriaPipeline": TinyPipeline(
        simple("BriaPipeline", "BriaTransformer2DModel", in_channels=16), prompted(PLAIN, guided=True, **SIDE)
    ),
    "OvisImagePipeline": TinyPipeline(
        simple("OvisImagePipeline", "OvisImageTransformer2DModel", in_channels=16, out_channels=16),
        prompted(PLAIN, guided=True, negative_prompt=None, **SIDE),
    ),
    "ZImagePipeline": TinyPipeline(
        simple("ZImagePipeline", "ZImageTransformer2DModel", 2),
        prompted(LONE, guided=True, **SIDE),
    ),
    "ZImageImg2ImgPipeline": TinyPipeline(
        simple("ZImageImg2ImgPipeline", "ZImageTransformer2DModel", 2),
        also(
            prompted(LONE, guided=True, strength=0.75, **SIDE),
            image=picture,
        ),
    ),
    "PRXPipeline": TinyPipeline(
        simple("PRXPipeline", "PRXTransformer2DModel", 2),
        prompted(TRUE, guidance_scale=1.0, use_resolution_binning=False, **SIDE),
    ),
}
