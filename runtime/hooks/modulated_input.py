"""What a block's first heavy module would be given: its modulated input, without computing the block."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.module_calls import Forward, own_calls_wrapped


class _Reached(BaseException):
    """Leaves the block at its first heavy module, with what that was given; not to be handled on the way."""

    def __init__(self, value: Tensor):
        self.value = value


def peek(module: nn.Module, read: Callable[..., Tensor], call: Callable[[], Any]) -> Tensor:
    """Run `call` until it calls `module`, and return the argument that `read` picks there.

    Other threads' calls of `module` go on as ever. Raises `PolicyError` if `call` never gets there.
    """

    def stop(_: Forward) -> Forward:
        def reached(*args: Any, **kwargs: Any) -> Any:
            raise _Reached(read(args, kwargs))

        return reached

    with own_calls_wrapped(module, stop):
        try:
            call()
        except _Reached as reached:
            return reached.value
    raise PolicyError(
        f"the first block never calls its {type(module).__name__}, so its modulated input is unknown; "
        'use a gate with signal="input"'
    )
