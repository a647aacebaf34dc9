"""Text or pictures to video, besides Wan."""

from typing import Any

import diffusers
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance

from tests.experts import wan_vae
from tests.pipelines.parts import (
    CLIP,
    MASKED,
    PLAIN,
    Made,
    TinyPipeline,
    also,
    assemble,
    flow,
    kl,
    mask,
    picture,
    pooled,
    prompted,
    text,
    transformer,
)

WIDE: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
BLOCKS = 4


def hunyuan_video_vae() -> Any:
    """8 x 8 pixels and 4 frames become one latent."""
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * BLOCKS,
        up_block_types=("HunyuanVideoUpBlock3D",) * BLOCKS,
        block_out_channels=(4,) * BLOCKS,
        layers_per_block=1,
        norm_num_groups=2,
    )


def hunyuan_video(name: str, **changes: Any) -> Any:
    """The autoencoder's latents are not patched."""

    def build() -> Any:
        vae = hunyuan_video_vae()
        model = transformer("HunyuanVideoTransformer3DModel", **{"patch_size": 1} | changes)
        return assemble(name, transformer=model, vae=vae, scheduler=flow(shift=7.0))

    return build


def hunyuan_video_15() -> Any:
    """Its guider asks for two calls a step. Latents are compared: its decoder takes one video at a time."""
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    model = transformer("HunyuanVideo15Transformer3DModel", in_channels=9, patch_size=1, patch_size_t=1)
    return assemble(
        "HunyuanVideo15Pipeline",
        transformer=model,
        vae=vae,
        scheduler=flow(shift=7.0),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )


def ltx(name: str) -> Any:
    """The autoencoder's blocks are not patched, so that 4 x 4 pixels are one latent."""

    def build() -> Any:
        vae = diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8,) * BLOCKS,
            decoder_block_out_channels=(8,) * BLOCKS,
            layers_per_block=(1,) * (BLOCKS + 1),
            decoder_layers_per_block=(1,) * (BLOCKS + 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * (BLOCKS + 1),
            upsample_residual=(False,) * BLOCKS,
            upsample_factor=(1,) * BLOCKS,
            patch_size=1,
            patch_size_t=1,
        )
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        return assemble(
            name, transformer=transformer("LTXVideoTransformer3DModel"), vae=vae, scheduler=flow()
        )

    return build


def cogvideox(name: str, **changes: Any) -> Any:
    """8 x 8 pixels and 4 frames become one latent."""

    def build() -> Any:
        vae = diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * BLOCKS,
            up_block_types=("CogVideoXUpBlock3D",) * BLOCKS,
            block_out_channels=(8,) * BLOCKS,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
        model = transformer(
            "CogVideoXTransformer3DModel", **{"sample_width": 2, "sample_height": 2} | changes
        )
        return assemble(name, transformer=model, vae=vae, scheduler=diffusers.CogVideoXDDIMScheduler())

    return build


def mochi() -> Any:
    """8 x 8 pixels and 6 frames become one latent."""
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    model = transformer("MochiTransformer3DModel", in_channels=12)
    return assemble(
        "MochiPipeline", transformer=model, vae=vae, scheduler=flow(), force_zeros_for_empty_prompt=False
    )


def allegro() -> Any:
    """Decoded in tiles only, so that latents are what is compared."""
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * BLOCKS,
        up_block_types=("AllegroUpBlock3D",) * BLOCKS,
        block_out_channels=(8,) * BLOCKS,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    model = transformer("AllegroTransformer3DModel", patch_size=1)
    return assemble("AllegroPipeline", transformer=model, vae=vae, scheduler=diffusers.DDIMScheduler())


def latte() -> Any:
    """Frames are pictures to its autoencoder."""
    model = transformer("LatteTransformer3DModel", out_channels=8)
    return assemble("LattePipeline", transformer=model, vae=kl(blocks=2), scheduler=diffusers.DDIMScheduler())


def on_wan(name: str, model: str, scheduler: Any = flow, **changes: Any) -> Any:
    """Models that use the autoencoder of Wan."""

    def build() -> Any:
        config = {"in_channels": 16, "out_channels": 16} | changes
        guider = {"guider": AdaptiveProjectedGuidance()} if name.startswith("Motif") else {}
        return assemble(
            name, transformer=transformer(model, **config), vae=wan_vae(), scheduler=scheduler(), **guider
        )

    return build


def cosmos() -> Any:
    """The one with noise levels as EDM has them, and an autoencoder that begins with wavelets."""
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8,) * BLOCKS,
        decode_block_out_channels=(8,) * BLOCKS,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    sampler = diffusers.EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        final_sigmas_type="sigma_min",
        prediction_type="epsilon",
    )
    model = transformer("CosmosTransformer3DModel")
    return assemble(
        "CosmosTextToWorldPipeline", transformer=model, vae=vae, scheduler=sampler, safety_checker=Harmless()
    )


def cosmos_2() -> Any:
    """The transformer is told c_noise instead of the sampler's timestep."""
    model = transformer("CosmosTransformer3DModel", in_channels=16, out_channels=16)
    return assemble(
        "Cosmos2TextToImagePipeline",
        transformer=model,
        vae=wan_vae(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=Harmless(),
    )


class Harmless:
    """A safety checker that finds nothing."""

    def to(self, *_: Any) -> None:
        """Stay."""

    def check_text_safety(self, *_: Any) -> bool:
        """Any text is fine."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Any video is fine."""
        return video


HUNYUAN: Made = {**MASKED, "pooled_prompt_embeds": pooled}
VIDEO: dict[str, TinyPipeline] = {
    "HunyuanVideoPipeline": TinyPipeline(
        hunyuan_video("HunyuanVideoPipeline", guidance_embeds=True), prompted(HUNYUAN, **CLIP)
    ),
    "HunyuanVideoPipeline (true CFG)": TinyPipeline(
        hunyuan_video("HunyuanVideoPipeline", guidance_embeds=True),
        prompted(HUNYUAN, guided=True, true_cfg_scale=4.0, **CLIP),
    ),
    "HunyuanSkyreelsImageToVideoPipeline": TinyPipeline(
        hunyuan_video("HunyuanSkyreelsImageToVideoPipeline", in_channels=8, guidance_embeds=True),
        also(prompted(HUNYUAN, guided=True, true_cfg_scale=4.0, **CLIP), image=picture),
    ),
    "HunyuanVideo15Pipeline": TinyPipeline(
        hunyuan_video_15,
        prompted(
            {
                **PLAIN,
                "prompt_embeds_mask": lambda i: mask(),
                "prompt_embeds_2": text,
                "prompt_embeds_mask_2": lambda i: mask(),
            },
            guided=True,
            output_type="latent",
            **CLIP,
        ),
    ),
    "LTXPipeline": TinyPipeline(ltx("LTXPipeline"), prompted(MASKED, guided=True, **WIDE)),
    "LTXImageToVideoPipeline": TinyPipeline(
        ltx("LTXImageToVideoPipeline"), also(prompted(MASKED, guided=True, **WIDE), image=picture)
    ),
    "LTXConditionPipeline": TinyPipeline(
        ltx("LTXConditionPipeline"), also(prompted(MASKED, guided=True, **WIDE), image=picture)
    ),
    "CogVideoXPipeline": TinyPipeline(
        cogvideox("CogVideoXPipeline", sample_frames=5), prompted(PLAIN, guided=True, **CLIP)
    ),
    "CogVideoXImageToVideoPipeline": TinyPipeline(
        cogvideox(
            "CogVideoXImageToVideoPipeline",
            sample_frames=5,
            in_channels=8,
            use_rotary_positional_embeddings=True,
        ),
        also(prompted(PLAIN, guided=True, **CLIP), image=picture),
    ),
    "CogVideoXVideoToVideoPipeline": TinyPipeline(
        cogvideox("CogVideoXVideoToVideoPipeline", sample_frames=5),
        also(
            prompted(PLAIN, guided=True, height=16, width=16, strength=0.75),
            video=lambda i: [picture(i)] * 5,
        ),
    ),
    "MochiPipeline": TinyPipeline(
        mochi,
        prompted(
            {**PLAIN, "prompt_attention_mask": lambda i: mask().bool()},
            guided=True,
            height=16,
            width=16,
            num_frames=7,
        ),
    ),
    "AllegroPipeline": TinyPipeline(
        allegro,
        prompted(
            MASKED, guided=True, negative_prompt=None, output_type="latent", height=16, width=16, num_frames=8
        ),
    ),
    "LattePipeline": TinyPipeline(
        latte,
        prompted(
            PLAIN, guided=True, negative_prompt=None, mask_feature=False, height=16, width=16, video_length=16
        ),
    ),
    "CosmosTextToWorldPipeline": TinyPipeline(
        cosmos, prompted(PLAIN, guided=True, height=32, width=32, num_frames=9)
    ),
    "Cosmos2TextToImagePipeline": TinyPipeline(cosmos_2, prompted(PLAIN, guided=True, height=16, width=16)),
    "SanaVideoPipeline": TinyPipeline(
        on_wan("SanaVideoPipeline", "SanaVideoTransformer3DModel"),
        prompted(
            MASKED,
            guided=True,
            negative_prompt=None,
            use_resolution_binning=False,
            height=32,
            width=32,
            frames=5,
        ),
    ),
    "MotifVideoPipeline": TinyPipeline(
        on_wan("MotifVideoPipeline", "MotifVideoTransformer3DModel", in_channels=33, patch_size=1),
        prompted(MASKED, guided=True, **CLIP),
    ),
}
