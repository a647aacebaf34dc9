"""What samples without being a pipeline class: a user's own function, and the blocks of a modular pipeline."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


def blocks_of(pipe: Any) -> Iterator[Any]:
    """All blocks that a modular pipeline is made of, those inside of others, too; none of another pipeline."""
    waiting = [block] if (block := getattr(pipe, "_blocks", None)) is not None else []
    while waiting:
        block = waiting.pop()
        yield block
        waiting += getattr(block, "sub_blocks", {}).values()


def inputs_of(pipe: Any) -> dict[str, inspect.Parameter]:
    """What a modular pipeline's blocks can be asked for, as parameters: its call takes anything, and ignores the rest.

    Which of them it needs, it says itself: some are made by its own blocks.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    named = [each for each in pipe._blocks.inputs if each.name is not None]
    return {each.name: inspect.Parameter(each.name, kind, default=each.default) for each in named}


@contextmanager
def blocks_with_gradients(pipe: Any) -> Iterator[None]:
    """Have the blocks of a modular pipeline called with gradients: each turns them off for itself."""
    every = {type(block) for block in blocks_of(pipe)}
    owners = {
        cls for each in every for cls in each.__mro__ if hasattr(vars(cls).get("__call__"), "__wrapped__")
    }
    with ExitStack() as stack:
        for cls in owners:
            call = vars(cls)["__call__"]
            stack.callback(setattr, cls, "__call__", call)
            setattr(cls, "__call__", torch.enable_grad()(inspect.unwrap(call)))  # noqa: B010
        yield


@contextmanager
def without_progress_bars(pipe: Any) -> Iterator[None]:
    """Show no progress bars of the pipeline's own, nor of its blocks."""
    every = [pipe, *(block for block in blocks_of(pipe) if hasattr(block, "set_progress_bar_config"))]
    shown = [dict(getattr(each, "_progress_bar_config", {})) for each in every]
    for each, settings in zip(every, shown, strict=True):
        each.set_progress_bar_config(**{**settings, "disable": True})
    try:
        yield
    finally:
        for each, settings in zip(every, shown, strict=True):
            each.set_progress_bar_config(**settings)
