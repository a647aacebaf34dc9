"""LTX2: a video and its sound, in two streams of different widths and two latents that are stepped at once."""

from typing import Any

import diffusers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from tests.pipelines.parts import MASKED, TinyPipeline, also, assemble, flow, picture, prompted, transformer

LATENTS, MELS = 4, 8
GUIDED: dict[str, Any] = {"guidance_scale": 3.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
ALONE: dict[str, Any] = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
SHORT: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0}


def video_vae() -> Any:
    """8 x 8 pixels and 4 frames become one latent."""
    return diffusers.AutoencoderKLLTX2Video(
        latent_channels=LATENTS,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1,) * 3,
        decoder_layers_per_block=(1,) * 3,
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=2,
    )


def audio_vae() -> Any:
    """25 latents a second, of 8 mel bins in 2: 4 numbers each."""
    return diffusers.AutoencoderKLLTX2Audio(
        base_channels=LATENTS,
        output_channels=2,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=MELS,
    )


def vocoder() -> Any:
    """Four samples a frame."""
    return LTX2Vocoder(
        in_channels=2 * MELS,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        output_sampling_rate=400,
    )


def connectors() -> Any:
    """Between the text encoder and each of the streams."""
    sizes = {
        f"{kind}_connector_{name}": value
        for kind in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_learnable_registers": None,
        }.items()
    }
    return LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        **sizes,
    )


def ltx2(name: str) -> Any:
    """The smallest of each part."""

    def build() -> Any:
        return assemble(
            name,
            transformer=transformer("LTX2VideoTransformer3DModel"),
            vae=video_vae(),
            audio_vae=audio_vae(),
            connectors=connectors(),
            vocoder=vocoder(),
            scheduler=flow(),
        )

    return build


LTX2: dict[str, TinyPipeline] = {
    "LTX2Pipeline": TinyPipeline(
        ltx2("LTX2Pipeline"), prompted(MASKED, guided=True, **GUIDED, **ALONE, **SHORT)
    ),
    "LTX2Pipeline (all guidance)": TinyPipeline(
        ltx2("LTX2Pipeline"), prompted(MASKED, guided=True, spatio_temporal_guidance_blocks=[1], **SHORT)
    ),
    "LTX2ImageToVideoPipeline": TinyPipeline(
        ltx2("LTX2ImageToVideoPipeline"),
        also(prompted(MASKED, guided=True, **GUIDED, **ALONE, **SHORT, image_crf=0), image=picture),
    ),
}
