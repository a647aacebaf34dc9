"""Gradients through a sampling run that does not keep the insides of its blocks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from cachesmith.calibrate.closed_loop.host import Host
from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.units import block_lists


@contextmanager
def recomputed(*transformers: nn.Module, on_host: bool = False) -> Iterator[None]:
    """Keep the inputs of every block alone, and compute it again for its gradients (arXiv 1604.06174).

    on_host: these inputs, and what else a backward pass needs, wait in the host's memory. Gradients stay what they are.
    To be entered before a runner is attached: diffusers' own switch stands around the runner, which would be told of
    every computation twice.
    """
    host = Host() if on_host else None
    with ExitStack() as stack:
        for transformer in transformers:
            for _, block in block_lists(transformer):
                name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
                stack.enter_context(patched(block, name, _checkpointed(getattr(block, name), host)))
            if host is not None:
                stack.enter_context(patched(transformer, "forward", _waiting(transformer, host)))
        yield


def _waiting(transformer: Any, host: Host) -> Forward:
    original = transformer.forward

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with host.saving(transformer):
            return original(*args, **kwargs)

    return forward


def _checkpointed(original: Forward, host: Host | None) -> Forward:
    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        leaves, layout = tree_flatten((args, kwargs))
        # the rest is shared by all blocks, and stays
        moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        resting = [None if i in moving else leaf for i, leaf in enumerate(leaves)]
        inputs = _Inputs([leaves[i] for i in moving], host)

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

    def __init__(self, tensors: list[Tensor], host: Host | None):
        self._first = tensors
        self._kept: list[Callable[[], Tensor]] = [] if host is None else [host.keep(each) for each in tensors]

    def __call__(self) -> list[Tensor]:
        tensors = self._first
        if self._kept:
            self._first = []
        return tensors or [kept().requires_grad_() for kept in self._kept]
