"""The pipelines of FLUX.1, FLUX.2 and the models that are built like them."""

from typing import Any

import diffusers
import torch

from cachesmith.zoo.tiny import fill_zeros
from tests.pipelines.parts import (
    PLAIN,
    SIDE,
    WORDS,
    TinyPipeline,
    also,
    assemble,
    flow,
    hole,
    kl,
    picture,
    prompted,
    text,
    transformer,
)

ASK = prompted(WORDS, **SIDE)
EDIT = also(prompted(PLAIN, height=64, width=64), image=lambda i: picture(i, 64))


def flux(name: str, channels: int = 4, **changes: Any) -> Any:
    """channels: of the latents; packed, there are four times as many."""

    def build() -> Any:
        model = transformer("FluxTransformer2DModel", **{"in_channels": 4 * channels} | changes)
        return assemble(name, transformer=model, vae=kl(channels), scheduler=flow())

    return build


def controlnet() -> Any:
    """A ControlNet of the transformer's shape."""
    net = diffusers.FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    fill_zeros(net)
    model = transformer("FluxTransformer2DModel", in_channels=16)
    return assemble("FluxControlNetPipeline", transformer=model, vae=kl(4), scheduler=flow(), controlnet=net)


def flux2(name: str, blocks: int = 1, **parts: Any) -> Any:
    """The decoder of FLUX.2 normalises latents by statistics of its own."""

    def build() -> Any:
        model = transformer("Flux2Transformer2DModel", in_channels=8)
        return assemble(name, transformer=model, vae=flux_2_vae(blocks), scheduler=flow(), **parts)

    return build


def flux_2_vae(blocks: int = 1) -> Any:
    """It normalises patches of four latents by statistics of its own."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        sample_size=16,
    )


def see(transformer: Any) -> None:
    """Give a Flux transformer of width 32 an IP-Adapter for embeddings of width 8, as 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    image_proj = {
        "proj.weight": torch.randn(4 * 32, 8, generator=generator),
        "proj.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
    }
    keys = [f"{i}.to_{part}_ip" for i in range(len(transformer.transformer_blocks)) for part in "kv"]
    ip_adapter = {f"{key}.weight": torch.randn(32, 32, generator=generator) for key in keys}
    ip_adapter |= {f"{key}.bias": torch.zeros(32) for key in keys}
    state = {"image_proj": image_proj, "ip_adapter": ip_adapter}
    transformer._load_ip_adapter_weights([state], low_cpu_mem_usage=False)


def with_ip_adapter(build: Any) -> Any:
    """What it draws is to look like a picture, too."""

    def built() -> Any:
        pipe = build()
        see(pipe.transformer)
        return pipe

    return built


FLUX: dict[str, TinyPipeline] = {
    "FluxPipeline": TinyPipeline(flux("FluxPipeline", guidance_embeds=True), ASK),
    "FluxPipeline (IP-Adapter)": TinyPipeline(
        with_ip_adapter(flux("FluxPipeline", guidance_embeds=True)),
        also(
            ASK,
            ip_adapter_image_embeds=lambda i: [text(i, 1, 8)],
            negative_ip_adapter_image_embeds=lambda i: [torch.zeros(1, 1, 8)],
        ),
    ),
    "FluxPipeline (true CFG)": TinyPipeline(
        flux("FluxPipeline"), prompted(WORDS, guided=True, true_cfg_scale=3.0, **SIDE)
    ),
    "FluxImg2ImgPipeline": TinyPipeline(
        flux("FluxImg2ImgPipeline"), also(prompted(WORDS, strength=0.75, **SIDE), image=picture)
    ),
    "FluxInpaintPipeline": TinyPipeline(
        flux("FluxInpaintPipeline"),
        also(prompted(WORDS, strength=0.75, **SIDE), image=picture, mask_image=lambda i: hole()),
    ),
    "FluxFillPipeline": TinyPipeline(
        flux("FluxFillPipeline", 2, in_channels=20, out_channels=8, guidance_embeds=True),
        also(ASK, image=picture, mask_image=lambda i: hole()),
    ),
    "FluxKontextPipeline": TinyPipeline(
        flux("FluxKontextPipeline", guidance_embeds=True),
        also(prompted(WORDS, max_area=256, _auto_resize=False, **SIDE), image=picture),
    ),
    "FluxKontextInpaintPipeline": TinyPipeline(
        flux("FluxKontextInpaintPipeline"),
        also(
            prompted(WORDS, max_area=256, _auto_resize=False, strength=0.75, **SIDE),
            image=picture,
            mask_image=lambda i: hole(),
        ),
    ),
    "FluxControlPipeline": TinyPipeline(
        flux("FluxControlPipeline", 2, in_channels=16, out_channels=8), also(ASK, control_image=picture)
    ),
    "FluxControlImg2ImgPipeline": TinyPipeline(
        flux("FluxControlImg2ImgPipeline", 2, in_channels=16, out_channels=8),
        also(prompted(WORDS, strength=0.75, **SIDE), image=picture, control_image=picture),
    ),
    "FluxControlInpaintPipeline": TinyPipeline(
        flux("FluxControlInpaintPipeline", 2, in_channels=16, out_channels=8),
        also(
            prompted(WORDS, strength=0.75, **SIDE),
            image=picture,
            control_image=picture,
            mask_image=lambda i: hole(),
        ),
    ),
    "FluxControlNetPipeline": TinyPipeline(controlnet, also(ASK, control_image=picture)),
    "Flux2Pipeline": TinyPipeline(flux2("Flux2Pipeline"), prompted(PLAIN, **SIDE)),
    "Flux2KleinPipeline": TinyPipeline(
        flux2("Flux2KleinPipeline", is_distilled=False),
        prompted(PLAIN, guided=True, guidance_scale=4.0, **SIDE),
    ),
    "Flux2KleinPipeline (edit)": TinyPipeline(flux2("Flux2KleinPipeline", 4, is_distilled=True), EDIT),
    "Flux2KleinKVPipeline": TinyPipeline(flux2("Flux2KleinKVPipeline", 4, is_distilled=True), EDIT),
}
