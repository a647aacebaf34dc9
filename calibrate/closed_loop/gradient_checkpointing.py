"""Gradients through a sampling run that does not keep the insides of its blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.units import block_lists


@contextmanager
def recomputed(*transformers: nn.Module) -> Iterator[None]:
    """Keep the inputs of every block alone, and compute it again for its gradients (arXiv 1604.06174).

    Gradients stay what they are. To be entered before a runner is attached: diffusers' own switch stands around the
    runner, which would be told of every computation twice.
    """
    with ExitStack() as stack:
        for _, block in chain.from_iterable(block_lists(transformer) for transformer in transformers):
            name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
            stack.enter_context(patched(block, name, _checkpointed(getattr(block, name))))
        yield


def _checkpointed(original: Forward) -> Forward:
    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(original, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward
