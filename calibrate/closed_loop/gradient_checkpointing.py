"""Gradients through a sampling run that does not keep the insides of its blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from cachesmith.calibrate.closed_loop.host import Host
from cachesmith.calibrate.closed_loop.offload import holding
from cachesmith.runtime.hooks.module_calls import Forward, call_name
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.units import block_lists


@contextmanager
def recomputed(*transformers: nn.Module, on_host: bool = False) -> Iterator[None]:
    """Keep the inputs of every block alone, and compute it again for its gradients (arXiv 1604.06174).

    on_host: these inputs, and what else a backward pass needs, wait in the host's memory. Gradients stay what they are;
    they come by `backward`, `torch.autograd.grad` raises. To be entered before a runner is attached: diffusers' own
    switch stands around the runner, which would be told of every computation twice.
    """
    with ExitStack() as stack:
        for transformer in transformers:
            for _, block in block_lists(transformer):
                name = call_name(block)
                stack.enter_context(patched(block, name, _checkpointed(getattr(block, name))))
            if on_host:
                stack.enter_context(patched(transformer, "forward", _waiting(transformer, Host())))
        yield


def _waiting(transformer: Any, host: Host) -> Forward:
    original = transformer.forward

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with host.saving(transformer):
            return original(*args, **kwargs)

    return forward


def _checkpointed(original: Forward) -> Forward:
    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, layout = tree_flatten((args, kwargs))
        wanted = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
        if not (wanted and torch.is_grad_enabled()):
            return original(*args, **kwargs)
        made: list[TreeSpec] = []

        def compute(*given: Any) -> tuple[Any, ...]:
            positional, named = tree_unflatten([*given], layout)
            with holding():
                results, shape = tree_flatten(original(*positional, **named))
            made.append(shape)
            return tuple(results)

        # reentrant: the other kind keeps weights that hooks change as they become, and stops half-way through
        results = checkpoint(compute, *leaves, use_reentrant=True, preserve_rng_state=False)
        return tree_unflatten([*results], made[0])

    return forward
