"""Pipelines of models that came after the ones in the other files."""

from typing import Any

import diffusers
import torch

from tests.experts import wan_vae
from tests.pipelines.flux import flux_2_vae
from tests.pipelines.image import LISTED, qwen_vae
from tests.pipelines.parts import (
    CLIP,
    MASKED,
    PLAIN,
    SIDE,
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
from tests.pipelines.video import HUNYUAN, hunyuan_video_vae
from tests.pipelines.wan import seeing
from tests.pipelines.words import Letters, Table


def kandinsky_5() -> Any:
    """Eight pixels are one latent, whatever its autoencoder does."""
    pipe = assemble(
        "Kandinsky5T2IPipeline",
        transformer=transformer("Kandinsky5Transformer3DModel"),
        vae=kl(blocks=4),
        scheduler=flow(),
    )
    pipe.resolutions = [(32, 32)]
    return pipe


def krea_2() -> Any:
    """States of several layers of its text encoder."""
    model = transformer("Krea2Transformer2DModel", in_channels=16)
    return assemble("Krea2Pipeline", transformer=model, vae=qwen_vae(), scheduler=flow())


def easyanimate() -> Any:
    """Eight pixels and four frames are one latent."""
    levels = ("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3)
    vae = diffusers.AutoencoderKLMagvit(
        down_block_types=levels,
        up_block_types=tuple(level.replace("Down", "Up") for level in levels),
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    model = transformer("EasyAnimateTransformer3DModel")
    return assemble("EasyAnimatePipeline", transformer=model, vae=vae, scheduler=flow())


def framepack() -> Any:
    """One section of frames: the picture that it begins with is seen by an encoder."""
    eyes = seeing()
    return assemble(
        "HunyuanVideoFramepackPipeline",
        transformer=transformer("HunyuanVideoFramepackTransformer3DModel"),
        vae=hunyuan_video_vae(),
        scheduler=flow(),
        image_encoder=eyes["image_encoder"],
        feature_extractor=eyes["image_processor"],
    )


def helios() -> Any:
    """A chunk of frames after what was before it."""
    model = transformer("HeliosTransformer3DModel", in_channels=16, out_channels=16)
    return assemble(
        "HeliosPipeline", transformer=model, vae=wan_vae(), scheduler=diffusers.HeliosScheduler(stages=1)
    )


class Chat(Letters):
    """A tokenizer with a template for chats."""

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        """The text of the only message."""
        text: str = messages[0]["content"][0]["text"]
        return text

    def __call__(self, texts: str | list[str], **_: Any) -> Any:
        """[N, tokens] of numbers."""
        return vars(super().__call__(texts))


def ideogram_4() -> Any:
    """A transformer of its own for calls without a prompt."""
    both = ("transformer", "unconditional_transformer")
    parts = {name: transformer("Ideogram4Transformer2DModel") for name in both}
    pipe = assemble(
        "Ideogram4Pipeline",
        vae=flux_2_vae(),
        scheduler=flow(),
        text_encoder=Table(),
        tokenizer=Chat(),
        **parts,
    )
    pipe._get_text_encoder_hidden_states = lambda encoder, ids, *_: [encoder(ids).last_hidden_state]
    return pipe


def nucleus() -> Any:
    """The autoencoder of Qwen-Image."""
    model = transformer("NucleusMoEImageTransformer2DModel")
    return assemble("NucleusMoEImagePipeline", transformer=model, vae=qwen_vae(), scheduler=flow())


KANDINSKY: Made = {
    "prompt_embeds_qwen": text,
    "prompt_embeds_clip": pooled,
    "prompt_cu_seqlens": lambda i: torch.tensor([0, 3], dtype=torch.int32),
}
LAYERED: Made = {
    "prompt_embeds": lambda i: text(i, 9, 16).reshape(1, 3, 3, 16),
    "prompt_embeds_mask": lambda i: mask().bool(),
}
NEWER: dict[str, TinyPipeline] = {
    "Kandinsky5T2IPipeline": TinyPipeline(
        kandinsky_5, prompted(KANDINSKY, guided=True, guidance_scale=4.0, height=32, width=32)
    ),
    "Krea2Pipeline": TinyPipeline(krea_2, prompted(LAYERED, guided=True, guidance_scale=4.0, **SIDE)),
    "Ideogram4Pipeline": TinyPipeline(
        ideogram_4,
        lambda i: {
            "prompt": f"a cat of {i}",
            "guidance_scale": 4.0,
            "guidance_schedule": None,
            "max_sequence_length": 8,
            **SIDE,
        },
    ),
    "NucleusMoEImagePipeline": TinyPipeline(
        nucleus, prompted(LISTED, guided=True, guidance_scale=4.0, height=32, width=32)
    ),
    "EasyAnimatePipeline": TinyPipeline(
        easyanimate, prompted(MASKED, guided=True, guidance_scale=4.0, **CLIP)
    ),
    "HunyuanVideoFramepackPipeline": TinyPipeline(
        framepack, also(prompted(HUNYUAN, latent_window_size=2, **CLIP), image=picture)
    ),
    "HeliosPipeline": TinyPipeline(
        helios, prompted(PLAIN, guided=True, guidance_scale=4.0, num_latent_frames_per_chunk=2, **CLIP)
    ),
}
