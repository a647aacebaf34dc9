"""Pipelines that are guided for a part of the run, or otherwise there: calls change with the steps."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diffusers import QwenImageAutoBlocks
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from tests.pipelines.audio import AUDIO
from tests.pipelines.image import IMAGE
from tests.pipelines.parts import TinyPipeline
from tests.pipelines.video import VIDEO


def asked(tiny: TinyPipeline, **more: Any) -> TinyPipeline:
    """Asked for more."""
    return replace(tiny, request=lambda i: tiny.request(i) | more)


def guided_by(tiny: TinyPipeline, guiders: Callable[[], Mapping[str, Any]]) -> TinyPipeline:
    """With other guiders."""

    def build() -> Any:
        pipe = tiny.build()
        pipe.register_modules(**guiders())
        return pipe

    return replace(tiny, build=build)


def modular(**guided: Any) -> Any:
    """Qwen-Image as a modular pipeline: what is not there is not asked for."""
    parts, blocks = IMAGE["QwenImagePipeline"].pipe(), QwenImageAutoBlocks()
    for name in ("text_encoder", "vae_encoder", "controlnet_vae_encoder"):
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    guider = ClassifierFreeGuidance(**{"guidance_scale": 4.0} | guided)
    pipe.update_components(
        transformer=parts.transformer, vae=parts.vae, scheduler=parts.scheduler, guider=guider
    )
    return pipe


def modular_asked(i: int) -> dict[str, Any]:
    """The guider has the scale."""
    request = IMAGE["QwenImagePipeline"].request(i)
    return {name: value for name, value in request.items() if name != "true_cfg_scale"}


GUIDED: dict[str, TinyPipeline] = {
    "QwenImageModularPipeline": TinyPipeline(modular, modular_asked),
    "QwenImageModularPipeline (no guidance at the end)": TinyPipeline(
        lambda: modular(stop=0.5), modular_asked
    ),
    "Lumina2Pipeline (no guidance at the end)": asked(IMAGE["Lumina2Pipeline"], cfg_trunc_ratio=0.5),
    "ZImagePipeline (no guidance at the end)": asked(IMAGE["ZImagePipeline"], cfg_truncation=0.25),
    "AceStepPipeline (guidance in the middle)": asked(
        AUDIO["AceStepPipeline"], guidance_scale=4.0, cfg_interval_start=0.3, cfg_interval_end=0.5
    ),
    "StableDiffusion3Pipeline (a layer skipped)": asked(
        IMAGE["StableDiffusion3Pipeline"], skip_guidance_layers=[1], skip_layer_guidance_stop=0.6
    ),
    "HunyuanVideo15Pipeline (no guidance at the start)": guided_by(
        VIDEO["HunyuanVideo15Pipeline"],
        lambda: {"guider": ClassifierFreeGuidance(guidance_scale=4.0, start=0.3)},
    ),
    "HunyuanImagePipeline (guidance in the middle)": guided_by(
        IMAGE["HunyuanImagePipeline"],
        lambda: {
            name: AdaptiveProjectedMixGuidance(enabled=True, start=0.2, stop=0.7)
            for name in ("guider", "ocr_guider")
        },
    ),
}
