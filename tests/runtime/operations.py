"""Count tensor operations as an accelerator sees them, and forbid those that wait for it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cachesmith.runtime.runs import session as session_module
from cachesmith.runtime.tensors import kernels, triton_kernels

FREE = {
    "view", "_unsafe_view", "slice", "select", "expand", "unsqueeze", "squeeze", "transpose", "t", "permute",
    "detach", "alias", "split", "chunk", "unbind", "reshape", "split_with_sizes", "_reshape_alias", "as_strided",
}  # fmt: skip
"""Operations that launch nothing."""

WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
"""Operations that read the device."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would be launched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        # nothing is launched for a tensor without elements, as a bypassed module returns it
        empty = isinstance(result, torch.Tensor) and result.numel() == 0
        if name not in FREE and not empty:
            self.counts[name] += 1
        return result


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where the host would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING, f"aten::{name} reads the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def fused(monkeypatch: pytest.MonkeyPatch, operations: Operations) -> Iterator[None]:
    """Take the path of an accelerator, where a fused kernel counts as its launches and computes as the plain one."""
    with monkeypatch.context() as patch:
        plain: dict[str, Callable[..., Any]] = {
            "weighted_sum": kernels.weighted_sum,
            "relational_step": kernels.relational_step,
        }
        for name, launches in (("weighted_sum", 1), ("relational_step", 3)):
            patch.setattr(
                triton_kernels, f"fused_{name}", _counted(patch, plain[name], name, launches, operations)
            )
        patch.setattr(kernels, "fusable", lambda _: True)
        patch.setattr(session_module, "_on_host", lambda _: False)
        yield


def _counted(
    patch: pytest.MonkeyPatch, plain: Callable[..., Any], name: str, launches: int, operations: Operations
) -> Callable[..., Any]:
    @wraps(plain)
    def counted(*args: Any, **kwargs: Any) -> Any:
        operations.counts[name] += launches
        with _disable_current_modes(), pytest.MonkeyPatch.context() as inner, torch.no_grad():
            inner.setattr(kernels, "fusable", lambda _: False)
            return plain(*args, **kwargs)

    return counted
