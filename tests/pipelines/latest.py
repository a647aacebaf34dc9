"""Text to image by models that came after those in the other files."""

from typing import Any

import torch

from tests.experts import wan_vae
from tests.pipelines.flux import flux_2_vae
from tests.pipelines.parts import (
    PLAIN,
    SIDE,
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
from tests.pipelines.words import Letters, Table


def longcat_image() -> Any:
    """It asks for the number of texts, and so takes no embeddings."""
    model = transformer("LongCatImageTransformer2DModel", in_channels=64)
    encoder = Table()
    pipe = assemble(
        "LongCatImagePipeline",
        transformer=model,
        vae=kl(16),
        scheduler=flow(),
        text_encoder=encoder,
        tokenizer=Letters(),
    )
    pipe._encode_prompt = lambda texts: encoder(Letters()(texts).input_ids).last_hidden_state
    return pipe


def bria_fibo() -> Any:
    """States of all layers of its text encoder, one for each block; sixteen pixels are one latent."""
    model = transformer("BriaFiboTransformer2DModel", in_channels=16)
    return assemble(
        "BriaFiboPipeline",
        transformer=model,
        vae=wan_vae(),
        scheduler=flow(),
        text_encoder=Table(16, layers=4),
        tokenizer=Letters(),
    )


def hidream() -> Any:
    """Experts, and a sequence that holds three texts; whatever size is asked for, its area is that of the usual one."""
    model = transformer("HiDreamImageTransformer2DModel")
    pipe = assemble("HiDreamImagePipeline", transformer=model, vae=kl(blocks=2), scheduler=flow())
    pipe.default_sample_size = 8
    return pipe


def ernie() -> Any:
    """Texts of different lengths as a list."""
    model = transformer("ErnieImageTransformer2DModel", in_channels=8, out_channels=8)
    return assemble("ErnieImagePipeline", transformer=model, vae=flux_2_vae(), scheduler=flow())


def glm() -> Any:
    """Tokens of a language model beside the text."""
    vae = kl(blocks=2, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    model = transformer("GlmImageTransformer2DModel")
    return assemble("GlmImagePipeline", transformer=model, vae=vae, scheduler=flow())


def bria_fibo_2() -> Any:
    """States of several layers of its text encoder."""
    model = transformer("BriaFibo2Transformer2DModel", in_channels=2)
    return assemble("BriaFibo2Pipeline", transformer=model, vae=flux_2_vae(), scheduler=flow())


GLM: dict[str, Any] = {"guidance_scale": 4.0, "prior_token_ids": torch.arange(16)[None], **SIDE}
LATEST: dict[str, TinyPipeline] = {
    "LongCatImagePipeline": TinyPipeline(
        longcat_image,
        lambda i: {"prompt": f"a cat of {i}", "guidance_scale": 4.0, "enable_prompt_rewrite": False, **SIDE},
    ),
    "BriaFiboPipeline": TinyPipeline(
        bria_fibo,
        lambda i: {
            "prompt": f"a cat of {i}",
            "negative_prompt": "a dog",
            "guidance_scale": 4.0,
            "height": 64,
            "width": 64,
        },
    ),
    "BriaFibo2Pipeline": TinyPipeline(
        bria_fibo_2,
        prompted(
            {
                "prompt_embeds": lambda i: text(i, 6).reshape(1, 2, 3, 32),
                "prompt_embeds_mask": lambda i: mask().bool(),
            },
            guided=True,
            guidance_scale=4.0,
            **SIDE,
        ),
    ),
    "HiDreamImagePipeline": TinyPipeline(
        hidream,
        prompted(
            {
                "prompt_embeds_t5": text,
                "prompt_embeds_llama3": lambda i: text(i, 6, 4).reshape(2, 1, 3, 4),
                "pooled_prompt_embeds": pooled,
            },
            guided=True,
            guidance_scale=4.0,
            **SIDE,
        ),
    ),
    "ErnieImagePipeline": TinyPipeline(
        ernie,
        prompted({"prompt_embeds": lambda i: [text(i)[0]]}, guided=True, guidance_scale=4.0, **SIDE),
    ),
    "GlmImagePipeline": TinyPipeline(glm, prompted(PLAIN, guided=True, **GLM)),
}
GLM_EDIT = TinyPipeline(
    glm,
    also(
        prompted(
            PLAIN,
            guided=True,
            prior_token_image_ids=[torch.arange(16)],
            source_image_grid_thw=[torch.tensor([[1, 4, 4]])],
            **GLM,
        ),
        image=lambda i: [picture(i)],
    ),
)
"""What is edited is read into a cache of keys and values by a call before the first step, which is counted as one."""
