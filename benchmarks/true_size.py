"""Peak memory of a calibration by phase for models at their true size, and the command that keeps within a device.

    python benchmarks/true_size.py --out benchmarks/true_size.md

Needs no weights and no GPU: every module lives on the meta device. The plan is `--dry-run`'s own. The sizes of text
encoders, which are not made here, are those of their published weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from cachesmith.calibrate import CalibrationConfig
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.memory.plan import placement_of, planned_phases
from cachesmith.calibrate.memory.sizes import Sizes, sizes_of
from cachesmith.commands.output import write_text
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

GIB = 2**30
CARD = 80 * 10**9
"""Bytes of the device, of which a twentieth is left to kernels and to the allocator's gaps."""
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Model:
    """A pipeline on the meta device, what one request gives, and GiB of text encoders."""

    name: str
    pipe: Callable[[], Any]
    request: dict[str, Any]
    encoders: float
    options: str = ""


def text(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """What a text encoder returns."""
    return torch.zeros(shape, dtype=dtype, device="meta")


def flux() -> Any:
    """FLUX.1-dev."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        vae = AutoencoderKL(
            latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611,
        )  # fmt: skip
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae, transformer=transformer, **parts)


def qwen() -> Any:
    """Qwen-Image."""
    with torch.device("meta"):
        transformer, vae = QwenImageTransformer2DModel(), AutoencoderKLQwenImage()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return QwenImagePipeline(scheduler, vae, None, None, transformer)


def hunyuan() -> Any:
    """HunyuanVideo."""
    with torch.device("meta"):
        transformer, vae = HunyuanVideoTransformer3DModel(), AutoencoderKLHunyuanVideo()
    vae.enable_tiling()
    return HunyuanVideoPipeline(
        None, None, transformer, vae, FlowMatchEulerDiscreteScheduler(shift=7.0), None, None
    )


def wan() -> Any:
    """Wan 2.2 T2V 14B: two experts."""
    with torch.device("meta"):
        experts = [WanTransformer3DModel() for _ in range(2)]
        vae = AutoencoderKLWan()
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
    )
    return WanPipeline(
        None, None, vae, scheduler, transformer=experts[0], transformer_2=experts[1], boundary_ratio=0.875
    )


MODELS = (
    Model(
        "FLUX.1-dev, 1024 x 1024",
        flux,
        {"prompt_embeds": text(1, 512, 4096), "pooled_prompt_embeds": text(1, 768), "height": 1024, "width": 1024},
        9.1,
    ),
    Model(
        "Qwen-Image, 1328 x 1328",
        qwen,
        {"prompt_embeds": text(1, 128, 3584), "negative_prompt_embeds": text(1, 32, 3584)}
        | {"true_cfg_scale": 4.0, "height": 1328, "width": 1328},
        15.4,
    ),
    Model(
        "HunyuanVideo, 720 x 1280, 61 frames",
        hunyuan,
        {"prompt_embeds": text(1, 256, 4096), "pooled_prompt_embeds": text(1, 768)}
        | {"prompt_attention_mask": text(1, 256), "height": 720, "width": 1280, "num_frames": 61},
        15.2,
        " --fitting 16 --heldout 8",
    ),
    Model(
        "Wan 2.2 T2V 14B, 480 x 832, 81 frames",
        wan,
        {"prompt_embeds": text(1, 512, 4096), "negative_prompt_embeds": text(1, 512, 4096)}
        | {"height": 480, "width": 832, "num_frames": 81},
        10.6,
        " --fitting 16 --heldout 8",
    ),
)  # fmt: skip


def sizes_at_true_size(model: Model) -> Sizes:
    """Of one step of one sample, text encoders included."""
    pipe = model.pipe()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(BF16).eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    sizes = sizes_of(Renderer(pipe, 2, 1), Request(model.request, 0))
    return replace(sizes, weights={**sizes.weights, "text encoders": round(model.encoders * GIB)})


def section(model: Model, steps: int, budget: float) -> str:
    """One model's table, and the command that keeps within the device."""
    sizes = sizes_at_true_size(model)
    fitting = 16 if "--fitting 16" in model.options else None
    config = CalibrationConfig(steps=steps, budget=budget, speedups=(6.25,), fitting=fitting)
    within = CARD * 19 // 20
    found = placement_of(config, sizes, within)
    if _most(config, sizes, found) > within:
        found = placement_of(config, sizes, within, offload=True)
    lines = [
        f"## {model.name}", "",
        f"{sizes.tokens} tokens of {sizes.channels} channels; weights "
        + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sizes.weights.items()) + " GB", "",
        f"    cachesmith calibrate MODEL --prompts FILE --out X.policy.safetensors --budget {budget:g} --speedup 6.25"
        + " --offload model" * found.offload + model.options, "",
        f"`calibrate` chooses by itself: {found}; {found.resting}", "",
        "| phase | device GB | host GB |", "| --- | ---: | ---: |",
    ]  # fmt: skip
    planned = planned_phases(config, sizes, found)
    for phase in planned:
        lines.append(f"| {phase.name} | {phase.device / 1e9:.1f} | {phase.host / 1e9:.1f} |")
    device, host = (max(getattr(phase, name) for phase in planned) / 1e9 for name in ("device", "host"))
    fits = "fits" if device * 1e9 <= within else "does **not** fit"
    lines += ["", f"{device:.0f} GB at most: this {fits} {CARD / 1e9:.0f} GB; the host needs {host:.0f} GB."]
    return "\n".join(lines)


def _most(config: CalibrationConfig, sizes: Sizes, where: Placement) -> int:
    return max(phase.device for phase in planned_phases(config, sizes, where))


HEAD = """# Memory at true size

`python benchmarks/true_size.py --out benchmarks/true_size.md`: planned from shapes on the meta device, not measured
on a GPU. A test holds the plan to within 10 % of counted bytes on a small model. `calibrate` chooses by the same plan
from the memory that is free, and halves what still runs out of it.

"""


def main() -> None:
    """Write a section a model."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--budget", type=float, default=100)
    options.add_argument("--model", help="only those whose name holds this")
    given = options.parse_args()
    text = "\n\n".join(section(m, 50, given.budget) for m in MODELS if (given.model or "") in m.name)
    write_text(given.out, HEAD + text + "\n")


if __name__ == "__main__":
    main()
