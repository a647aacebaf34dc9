"""What is remembered of one unit on one branch between computed steps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Feature = tuple[Tensor, ...]


@dataclass
class History:
    """Newest first: computed steps, their outputs (residuals for block runs), their inputs, and RFE's scale [B]."""

    steps: list[int] = field(default_factory=list)
    outputs: list[Feature] = field(default_factory=list)
    inputs: list[Feature] = field(default_factory=list)
    scales: tuple[Tensor, ...] | None = None

    def push(self, step: int, outputs: Feature, inputs: Feature, taps: int, input_taps: int) -> None:
        """Remember a computed step, dropping what no forecast reads any more."""
        self.steps = [step, *self.steps[: taps - 1]]
        self.outputs = [outputs, *self.outputs[: taps - 1]]
        self.inputs = [inputs, *self.inputs[: input_taps - 1]] if input_taps else []

    def clear(self) -> None:
        """Forget everything: the next step is computed."""
        self.steps, self.outputs, self.inputs, self.scales = [], [], [], None

    def fits(self, inputs: Feature) -> bool:
        """Whether the remembered tensors have the batch, dtype and device of `inputs`, and its shape where known."""
        if not self.outputs:
            return False
        old = self.inputs[0] if self.inputs else self.outputs[0]
        same_shape = not self.inputs or all(a.shape == b.shape for a, b in zip(old, inputs, strict=True))
        return same_shape and all(
            a.shape[:-1] == b.shape[:-1] and a.dtype == b.dtype and a.device == b.device
            for a, b in zip(old, inputs, strict=True)
        )

    @property
    def bytes(self) -> int:
        """Bytes held."""
        tensors: list[Tensor] = [t for group in (*self.outputs, *self.inputs) for t in group]
        return sum(t.numel() * t.element_size() for t in tensors)


def finite(feature: Feature) -> bool:
    """Whether every value is finite, by one sum per tensor. Reads the device: call it only where that is free."""
    return all(bool(torch.isfinite(t.sum(dtype=torch.float32))) for t in feature)
