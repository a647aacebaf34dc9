"""What tiny pipelines are made of: parts with random weights, and requests that bring their own embeddings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from cachesmith.zoo import ZOO

STEPS = 8
Made = Mapping[str, Callable[..., Any]]
"""Arguments by name, made from a request's number."""


@dataclass(frozen=True)
class TinyPipeline:
    """How a pipeline is built, and what it is asked for: the arguments of request number i.

    steps: of its sampler, where it takes no other number.
    """

    build: Callable[[], Any]
    request: Callable[[int], dict[str, Any]]
    steps: int = STEPS

    def pipe(self) -> Any:
        """Build it, always with the same weights."""
        torch.manual_seed(0)
        pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def assemble(name: str, **parts: Any) -> Any:
    """Return a pipeline of the class `name`; parts that it wants and that are not given are None."""
    cls = getattr(diffusers, name)
    wanted = inspect.signature(cls.__init__).parameters.values()
    missing = {p.name: None for p in wanted if p.name not in ("self", *parts) and p.default is p.empty}
    return cls(**parts, **missing)


def transformer(name: str, **changes: Any) -> Any:
    """Return the tiny transformer of a class, with some entries of its configuration changed."""
    return replace(ZOO[name], config=ZOO[name].config | changes).build(name)


def flow(**settings: Any) -> Any:
    """The sampler of flow matching models."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | settings)


def kl(channels: int = 4, blocks: int = 1, **changes: Any) -> Any:
    """A picture's autoencoder: it shrinks a side by 2 ** (blocks - 1)."""
    settings: dict[str, Any] = {
        "block_out_channels": (4,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "norm_num_groups": 2,
        "latent_channels": channels,
        "layers_per_block": 1,
        "sample_size": 16,
        "shift_factor": 0.0,
        "scaling_factor": 1.0,
    }
    return diffusers.AutoencoderKL(**settings | changes)


def text(i: int, tokens: int = 3, width: int = 32) -> Tensor:
    """Embeddings of prompt number i, [1, tokens, width]."""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(100 + i))


def pooled(i: int, width: int = 32) -> Tensor:
    """One vector for prompt number i, [1, width]."""
    return text(i, 1, width)[:, 0]


def mask(tokens: int = 3, dtype: torch.dtype = torch.int64) -> Tensor:
    """All tokens count."""
    return torch.ones(1, tokens, dtype=dtype)


def picture(i: int, side: int = 16) -> Image.Image:
    """A noisy picture for request number i."""
    values = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(200 + i))
    return Image.fromarray((255 * values).byte().numpy())


def hole(side: int = 16) -> Image.Image:
    """A mask whose left half is to be filled."""
    made = Image.new("L", (side, side), 0)
    made.paste(255, (0, 0, side // 2, side))
    return made


SIDE: dict[str, Any] = {"height": 16, "width": 16}
CLIP: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 5}
PLAIN: Made = {"prompt_embeds": text}
WORDS: Made = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
MASKED: Made = {"prompt_embeds": text, "prompt_attention_mask": lambda i: mask()}


def prompted(names: Made, guided: bool = False, **common: Any) -> Callable[[int], dict[str, Any]]:
    """Return requests with embeddings by name; where they are guided, those of an empty prompt under `negative_`."""

    def request(i: int) -> dict[str, Any]:
        given = {name: make(i) for name, make in names.items()}
        empty = {f"negative_{name}": make(99) for name, make in names.items()} if guided else {}
        return given | empty | common

    return request


def also(
    request: Callable[[int], dict[str, Any]], **more: Callable[[int], Any]
) -> Callable[[int], dict[str, Any]]:
    """Return requests with more arguments that depend on the request's number."""
    return lambda i: request(i) | {name: make(i) for name, make in more.items()}
