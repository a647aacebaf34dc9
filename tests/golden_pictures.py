"""What every committed policy and every preset draws, as it was when the file was written.

`python -m tests.golden_pictures` writes it anew: only after a change that is meant to change pictures.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from cachesmith.policies import PRESETS, Policy, load, preset
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import read_prompts, requests
from tests.tiny import sample_dit, sample_flux, tiny_dit, tiny_flux

EXAMPLES = Path(__file__).parents[1] / "examples"
GOLDEN = Path(__file__).parent / "golden" / "pictures.safetensors"
SEED = 400_000
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion_dit": ("fashion", {"guidance_scale": 1.5}),
    "fashion_flux": ("fashion-flux", {}),
    "emoji_qwen": ("emoji", {}),
    "moving_wan": ("moving", {}),
}
TINY: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "dit": (tiny_dit, sample_dit),
    "flux": (tiny_flux, sample_flux),
}


def committed(name: str) -> Policy:
    return load(EXAMPLES / name / f"{MODELS[name][0]}.policy.safetensors")


def example_pictures(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Latents of one sample of an example: uncached, and under each profile of its policy."""
    pipe: Any = DiffusionPipeline.from_pretrained(EXAMPLES / name / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    renderer = Renderer(pipe, 50, batch=1, **MODELS[name][1])
    asked = requests(read_prompts(EXAMPLES / name / "prompts.jsonl"), 1, SEED)
    yield f"{name}/uncached", renderer(asked).latents
    policy = committed(name)
    for profile in policy.document.profiles:
        with apply(pipe, policy, profile):
            yield f"{name}/{profile}", renderer(asked).latents


def preset_pictures(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Pictures of a tiny model under each preset; `uncached` is one of them."""
    build, sample = TINY[name]
    for chosen in PRESETS:
        pipe = build()
        with apply(pipe, preset(chosen)):
            yield f"{name}/{chosen}", torch.from_numpy(sample(pipe))


def main() -> None:
    """Write the file."""
    pictures: dict[str, torch.Tensor] = {}
    for name in MODELS:
        pictures |= dict(example_pictures(name))
    for name in TINY:
        pictures |= dict(preset_pictures(name))
    save_file({k: v.contiguous() for k, v in pictures.items()}, GOLDEN)


if __name__ == "__main__":
    main()
