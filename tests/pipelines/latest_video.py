"""Text and pictures to video by models that came after those in the other files, and edits of pictures with them."""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor
from PIL import Image

from tests.experts import unipc, wan_vae
from tests.pipelines.parts import (
    CLIP,
    PLAIN,
    Made,
    TinyPipeline,
    also,
    assemble,
    flow,
    mask,
    picture,
    pooled,
    prompted,
    text,
    transformer,
)
from tests.pipelines.video import BLOCKS, hunyuan_video_vae
from tests.pipelines.wan import seeing
from tests.pipelines.words import Letters, Table


def kandinsky_5() -> Any:
    """Text to video."""
    model = transformer("Kandinsky5Transformer3DModel")
    return assemble("Kandinsky5T2VPipeline", transformer=model, vae=hunyuan_video_vae(), scheduler=flow())


def kandinsky_6() -> Any:
    """A picture and a text to video, without sound."""
    model = transformer(
        "Kandinsky6Transformer3DModel",
        visual_cond=True,
        visual_token_type_num_embeddings=2,
    )
    return assemble("Kandinsky6TI2VAPipeline", transformer=model, vae=hunyuan_video_vae(), scheduler=flow())


def consisid() -> Any:
    """A face, as an encoder of faces sees it, goes into the video between the blocks."""
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * BLOCKS,
        up_block_types=("CogVideoXUpBlock3D",) * BLOCKS,
        block_out_channels=(8,) * BLOCKS,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    model = transformer("ConsisIDTransformer3DModel", in_channels=8, sample_width=2, sample_height=2)
    # diffusers shows it only where OpenCV is, which draws the points of a face
    return ConsisIDPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=model,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


class Small(JoyImageEditImageProcessor):  # type: ignore[misc]
    """Pictures of 32 x 32, where the one that it stands in for makes a million pixels of everything."""

    def get_default_height_width(self, *_: Any) -> tuple[int, int]:
        """Always the same."""
        return 32, 32


def joy() -> Any:
    """Pictures are edited as videos of one frame."""
    model = transformer("JoyImageEditTransformer3DModel", in_channels=16)
    pipe = assemble("JoyImageEditPipeline", transformer=model, vae=wan_vae(), scheduler=flow())
    pipe.vae_image_processor = Small()
    return pipe


def joy_plus() -> Any:
    """Several pictures; it counts the texts, and so takes no embeddings."""
    model, encoder = transformer("JoyImageEditPlusTransformer3DModel", in_channels=16), Table()
    pipe = assemble(
        "JoyImageEditPlusPipeline",
        transformer=model,
        vae=wan_vae(),
        scheduler=flow(),
        text_encoder=encoder,
        tokenizer=Letters(),
    )
    pipe.image_processor = Small()

    def encoded(prompt: list[str], **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids = Letters()(prompt).input_ids
        return encoder(ids).last_hidden_state, torch.ones_like(ids)

    pipe.encode_prompt_multiple_images = encoded
    return pipe


def wan_animate() -> Any:
    """A person moves as another one does."""
    model = transformer("WanAnimateTransformer3DModel", in_channels=36, latent_channels=16, out_channels=16)
    return assemble("WanAnimatePipeline", transformer=model, vae=wan_vae(), scheduler=unipc(), **seeing())


class Template:
    """What a pipeline asks of a processor before it is called."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        """One token."""
        return [[0]]


def qwen_image_21() -> Any:
    """Keys and values of the text are remembered from the first step on."""
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
    )
    model = transformer("QwenImage21Transformer2DModel")
    return assemble("QwenImage21Pipeline", transformer=model, vae=vae, scheduler=flow(), processor=Template())


KANDINSKY_5: Made = {
    "prompt_embeds_qwen": text,
    "prompt_embeds_clip": pooled,
    "prompt_cu_seqlens": lambda i: torch.tensor([0, 3], dtype=torch.int32),
}
WORDS: Made = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
LISTED: Made = {"prompt_embeds": text, "prompt_embeds_mask": lambda i: mask()}


def frames(i: int) -> list[Image.Image]:
    """A short video."""
    return [picture(i + k) for k in range(5)]


LATEST_VIDEO: dict[str, TinyPipeline] = {
    "Kandinsky5T2VPipeline": TinyPipeline(
        kandinsky_5, prompted(KANDINSKY_5, guided=True, guidance_scale=4.0, **CLIP)
    ),
    "Kandinsky6TI2VAPipeline (no sound)": TinyPipeline(
        kandinsky_6,
        also(prompted(WORDS, guided=True, guidance_scale=4.0, sample_audio=False, **CLIP), image=picture),
    ),
    "ConsisIDPipeline": TinyPipeline(
        consisid,
        also(
            prompted(PLAIN, guided=True, **CLIP),
            image=picture,
            id_vit_hidden=lambda i: [torch.ones(2, 2, 2)],
            id_cond=lambda i: torch.ones(2, 2),
        ),
    ),
    "JoyImageEditPipeline": TinyPipeline(
        joy,
        also(
            prompted(LISTED, guided=True, guidance_scale=4.0, height=32, width=32),
            image=lambda i: picture(i, 32),
        ),
    ),
    "JoyImageEditPlusPipeline": TinyPipeline(
        joy_plus,
        lambda i: {
            "prompt": f"a cat of {i}",
            "images": [picture(i, 32)],
            "guidance_scale": 4.0,
            "height": 32,
            "width": 32,
        },
    ),
    "WanAnimatePipeline": TinyPipeline(
        wan_animate,
        also(
            prompted(PLAIN, guided=True, guidance_scale=4.0, height=16, width=16, segment_frame_length=5),
            image=picture,
            pose_video=frames,
            face_video=frames,
        ),
    ),
    "QwenImage21Pipeline": TinyPipeline(
        qwen_image_21,
        prompted(
            {"prompt_embeds": text, "prompt_embeds_mask": lambda i: mask().bool()},
            guided=True,
            true_cfg_scale=3.0,
            height=64,
            width=64,
        ),
    ),
}
