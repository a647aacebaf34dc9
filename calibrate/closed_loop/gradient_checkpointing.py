"""Gradients through a sampling run that does not keep the insides of its blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.units import block_lists


@contextmanager
def recomputed(*transformers: nn.Module, on_host: bool = False) -> Iterator[None]:
    """Keep the inputs of every block alone, and compute it again for its gradients (arXiv 1604.06174).

    on_host: those inputs that have gradients wait in the host's memory.
    Gradients stay what they are. To be entered before a runner is attached: diffusers' own switch stands around the
    runner, which would be told of every computation twice.
    """
    with ExitStack() as stack:
        for _, block in chain.from_iterable(block_lists(transformer) for transformer in transformers):
            name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
            stack.enter_context(patched(block, name, _checkpointed(getattr(block, name), on_host)))
        yield


def _checkpointed(original: Forward, on_host: bool) -> Forward:
    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        leaves, layout = tree_flatten((args, kwargs))
        # the rest is shared by all blocks, and stays
        moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        resting = [None if i in moving else leaf for i, leaf in enumerate(leaves)]
        inputs = _Inputs([leaves[i] for i in moving], on_host)

        def compute() -> Any:
            given = [*resting]
            for place, tensor in zip(moving, inputs(), strict=True):
                given[place] = tensor
            positional, named = tree_unflatten(given, layout)
            return original(*positional, **named)

        return checkpoint(compute, use_reentrant=False, preserve_rng_state=False)

    return forward


class _Inputs:
    """What has gradients among a block's inputs: as it was for the first time, then from where it waits.

    Gradients flow along the graph of the first time; of the second, values alone are used.
    """

    def __init__(self, tensors: list[Tensor], on_host: bool):
        self._first = tensors
        # not pinned: that rounds every tensor up to a power of two
        self._kept = (
            [(each.device, each.detach().to("cpu", copy=True)) for each in tensors] if on_host else []
        )

    def __call__(self) -> list[Tensor]:
        tensors = self._first
        if self._kept:
            self._first = []
        return tensors or [each.to(device).requires_grad_() for device, each in self._kept]
