"""A user's own sampling function where a pipeline is expected."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class SamplingLoop:
    """What the rest asks of a pipeline, around a function that samples.

    sample: called by keyword with the arguments of a batch: those of the requests (texts and class labels as lists,
    one entry a sample; tensors joined along their first dimension), `generator`, a list with a torch generator for the
    noise of every sample, and `num_inference_steps`. It calls `transformer` and steps `scheduler`, and returns samples
    [N, C, H, W] in [0, 1] (videos [N, F, C, H, W]), or an object with `images`, `frames` or `audios`, and `latents`
    where the samples were decoded from some.
    """

    vae = None

    def __init__(self, transformer: nn.Module, scheduler: Any, sample: Callable[..., Any]):
        self.transformer, self.scheduler, self.sample = transformer, scheduler, sample

    def __call__(self, **arguments: Any) -> Any:
        """Sample one batch."""
        made = self.sample(**arguments)
        return SimpleNamespace(images=made) if isinstance(made, Tensor) else made

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return next(self.transformer.parameters()).dtype

    def set_progress_bar_config(self, **_: Any) -> None:
        """Show none: the function is the user's own."""
