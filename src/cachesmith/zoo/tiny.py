"""What a tiny model is, and the ways in which pipelines call one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

_Call = Callable[[Any, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Tiny:
    """Configuration, shape of the latents, and call, which returns whatever the model returns.

    `turn`: what the pipeline makes of the model's output before the scheduler steps with it. `prepare` is done with
    a new model first. A `heavy` one takes seconds.
    """

    config: dict[str, Any]
    shape: tuple[int, ...]
    call: _Call
    turn: float = 1.0
    heavy: bool = False
    prepare: Callable[[Any], Any] | None = None

    def build(self, name: str) -> Any:
        """Return a new model of the class `name`, always with the same weights."""
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**self.config).eval()
        fill_zeros(model)
        if self.prepare is not None:
            self.prepare(model)
        return model

    def noise(self) -> Tensor:
        """Return latents, always the same."""
        return fixed(*self.shape, seed=0)

    def velocity(self, model: Any, x: Tensor, t: Tensor) -> Tensor:
        """What the scheduler steps with: the model's output, brought into the latents' shape if it has another."""
        main, *others = tensors_of(self.call(model, x, t))
        if main.shape != x.shape:
            main = main.flatten().repeat(-(-x.numel() // main.numel()))[: x.numel()].reshape(x.shape)
        return self.turn * main + 0.01 * sum(other.float().mean() for other in others)


def fill_zeros(model: nn.Module) -> None:
    """Draw the parameters that begin at zero, as some output layers do: what is before them would be without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and not parameter.any():
                parameter.normal_(std=0.02)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a model's output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def fixed(*shape: int, seed: int = 7) -> Tensor:
    """Return normal noise of this shape, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int) -> Tensor:
    """Return integer ones."""
    return torch.ones(shape, dtype=torch.int64)


def plain_call(latents: str = "hidden_states", timestep: str = "timestep", **inputs: Any) -> _Call:
    """Latents and the scheduler's own timestep by name, and whatever else never changes."""

    def call(model: Any, x: Tensor, t: Tensor) -> Any:
        return model(**{latents: x, timestep: t[None]}, **inputs)

    return call


def packed(**inputs: Any) -> _Call:
    """Latents as tokens, timestep on [0, 1]: the family of FLUX."""

    def call(model: Any, x: Tensor, t: Tensor) -> Any:
        return model(x, timestep=t[None] / 1000, **{"encoder_hidden_states": TEXT} | inputs)

    return call


TEXT = fixed(1, 3, 32)
POOLED = fixed(1, 32)
MASK = torch.ones(1, 3)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
LAYERS = {"num_layers": 2, "num_single_layers": 2}
ROPE_AXES = {"axes_dims_rope": (4, 4, 8), "joint_attention_dim": 32}
IMAGE_IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
FOUR_IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), torch.zeros(1))[None]
IDS = {"img_ids": IMAGE_IDS, "txt_ids": torch.zeros(3, 3)}
