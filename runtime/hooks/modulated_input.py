"""What a block's first heavy module would be given: its modulated input, without computing the block."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.patch import patched


class _Reached(BaseException):
    """Leaves the block at its first heavy module, with what that was given; not to be handled on the way."""

    def __init__(self, value: Tensor):
        self.value = value


def peek(module: nn.Module, read: Callable[..., Tensor], call: Callable[[], Any]) -> Tensor:
    """Run `call` until it calls `module`, and return the argument that `read` picks there.

    Other threads' calls of `module` go on as ever. Raises `PolicyError` if `call` never gets there.
    """
    own, original = threading.get_ident(), module.forward

    @wraps(original)
    def stop(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != own:
            return original(*args, **kwargs)
        raise _Reached(read(args, kwargs))

    with patched(module, "forward", stop):
        try:
            call()
        except _Reached as reached:
            return reached.value
    raise PolicyError(
        f"the first block never calls its {type(module).__name__}, so its modulated input is unknown; "
        'use a gate with signal="input"'
    )
