"""Tensors of a graph that wait in the host's memory until a backward pass asks for them."""

from contextlib import AbstractContextManager, suppress
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import Tensor, UntypedStorage, nn

SMALL = 2**16
"""Tensors of fewer bytes stay where they are."""


class Waiting:
    """One tensor on the host; called, it is back on its device."""

    def __init__(self, tensor: Tensor):
        self._device = tensor.device
        # not pinned: that rounds every tensor up to a power of two
        self._copy = tensor.detach().to("cpu", copy=True)

    def __call__(self) -> Tensor:
        """The values, without a graph."""
        return self._copy.to(self._device).detach()


class Host:
    """Keeps each tensor once, whoever needs it, and as long as somebody does: all forecasts read the same history."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[UntypedStorage, WeakValueDictionary[object, Waiting]] = (
            WeakKeyDictionary()
        )

    def keep(self, tensor: Tensor) -> Waiting:
        """Copy a tensor to the host, unless it is there."""
        views = self._known.setdefault(tensor.untyped_storage(), WeakValueDictionary())
        key = tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        waiting = views.get(key)
        if waiting is None:
            views[key] = waiting = Waiting(tensor)
        return waiting

    def saving(self, module: nn.Module) -> AbstractContextManager[None]:
        """Let what operations save for a backward pass wait on the host, but for the weights of `module`.

        Of these, the values of the moment are used: hooks that offload put others in their place.
        """
        weights = _storages(module)

        def pack(tensor: Tensor) -> Tensor | Waiting:
            here = tensor.nbytes < SMALL or tensor.untyped_storage() in weights
            return tensor.detach() if here else self.keep(tensor)

        return torch.autograd.graph.saved_tensors_hooks(pack, _unpacked)


def _unpacked(saved: Tensor | Waiting) -> Tensor:
    return saved() if isinstance(saved, Waiting) else saved


def _storages(module: nn.Module) -> WeakSet[UntypedStorage]:
    found: WeakSet[UntypedStorage] = WeakSet()
    for weight in (*module.parameters(), *module.buffers()):
        with suppress(NotImplementedError, RuntimeError):  # of quantised weights
            found.add(weight.untyped_storage())
    return found
