"""A sampling loop that stands for a pipeline: true-size transformers with random weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from torch import Tensor

SIZES: dict[tuple[str, bool], dict[str, Any]] = {
    ("dit", False): {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "out_channels": 8},
    ("dit", True): {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "norm_num_groups": 2},
    ("flux", False): {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    ("flux", True): {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
    },
}  # fmt: skip
"""DiT-XL/2 at 256 x 256 pixels, FLUX.1-dev at 1024 x 1024; and toys of the same shape."""


class Loop:
    """A sampling loop that stands for a pipeline: random weights, random text, no decoder."""

    def __init__(self, kind: str, tiny: bool, device: str, dtype: torch.dtype):
        self.kind, self.tiny, self.device, self.dtype = kind, tiny, torch.device(device), dtype
        torch.manual_seed(0)
        with _default(dtype, device):
            options = SIZES[kind, tiny]
            made = DiTTransformer2DModel(**options) if kind == "dit" else FluxTransformer2DModel(**options)
        self.transformer: Any = made.eval()
        self.scheduler = DDIMScheduler() if kind == "dit" else FlowMatchEulerDiscreteScheduler()
        self.seconds: list[float] = []

    @torch.no_grad()
    def __call__(
        self, pictures: int = 1, num_inference_steps: int = 20, stop: int | None = None, **_: Any
    ) -> Tensor:
        """Sample, up to step `stop`; the time of every transformer call is in `seconds`."""
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self._noise(pictures)
        given = self._conditions(latents)
        self.seconds = []
        for step in self.scheduler.timesteps[:stop]:
            self._wait()
            began = time.perf_counter()
            output = (
                self._dit(latents, step, given) if self.kind == "dit" else self._flux(latents, step, given)
            )
            self._wait()
            self.seconds.append(time.perf_counter() - began)
            latents = self.scheduler.step(output, step, latents).prev_sample
        return latents

    def _noise(self, pictures: int) -> Tensor:
        torch.manual_seed(1)
        side = 32 if self.kind == "dit" else 8 if self.tiny else 64
        shape = (pictures, 4, side, side) if self.kind == "dit" else (pictures, side * side, 64)
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def _conditions(self, latents: Tensor) -> dict[str, Any]:
        """What every call of a run is given beside the latents and the step."""
        n = len(latents)
        place: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.kind == "dit":
            return {"class_labels": torch.tensor([1] * n + [1000] * n, device=self.device)}
        config, tokens = self.transformer.config, latents.shape[1]
        torch.manual_seed(2)
        ids, side = torch.zeros(tokens, 3, **place), int(tokens**0.5)
        ids[:, 1], ids[:, 2] = (torch.arange(tokens) // side).to(ids), (torch.arange(tokens) % side).to(ids)
        return {
            "encoder_hidden_states": torch.randn(n, 512, config.joint_attention_dim, **place),
            "pooled_projections": torch.randn(n, config.pooled_projection_dim, **place),
            "guidance": torch.full((n,), 3.5, **place),
            "img_ids": ids,
            "txt_ids": torch.zeros(512, 3, **place),
        }

    def _dit(self, latents: Tensor, step: Tensor, given: dict[str, Any]) -> Tensor:
        both = torch.cat([latents, latents])
        result: Tensor = self.transformer(
            both, timestep=step.to(self.device).expand(len(both)), **given
        ).sample
        with_label, without = result[:, :4].chunk(2)
        return without + 4 * (with_label - without)

    def _flux(self, latents: Tensor, step: Tensor, given: dict[str, Any]) -> Tensor:
        times = (step / 1000).to(latents).expand(len(latents))
        result: Tensor = self.transformer(hidden_states=latents, timestep=times, return_dict=False, **given)[
            0
        ]
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def _default(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
