"""Muon (Jordan et al., 2024) for inner weights and AdamW for the rest, and how their rate goes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(step: int, steps: int) -> float:
    """Warm up over 50 steps, then a cosine down to 2 percent: a share of the highest rate."""
    return min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


class Optimizer:
    """`inner(name, weight)` says which weights are Muon's; a kernel is a matrix with a row for each output."""

    def __init__(self, model: nn.Module, rate: float, inner: Callable[[str, Tensor], bool]):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.rate, self.inner = rate, [p for name, p in trained if inner(name, p)]
        rest = [p for name, p in trained if not inner(name, p)]
        self.matrices = [
            nn.Parameter(p.detach().flatten(1)) for p in self.inner
        ]  # they share the weights' memory
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01),
        )

    def step(self, share: float) -> None:
        """Step with `share` of the rate, and forget the gradients."""
        for matrix, weight in zip(self.matrices, self.inner, strict=True):
            assert weight.grad is not None
            matrix.grad, weight.grad = weight.grad.flatten(1), None
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate * share
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of both."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take what `state_dict` has returned."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
