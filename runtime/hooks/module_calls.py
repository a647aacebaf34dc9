"""Layers on the calls of a module: on its compiled call where it is compiled, else on its forward."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from cachesmith.runtime.hooks.patch import Layer, patched

Forward = Callable[..., Any]
Wrap = Callable[[Forward], Forward]

_COMPILED = "_compiled_call_impl"


def call_name(module: nn.Module) -> str:
    """The attribute that a call of `module` goes through."""
    return "forward" if getattr(module, _COMPILED, None) is None else _COMPILED


def layer_on_call(module: nn.Module, wrap: Wrap) -> Layer:
    """Wrap the calls of `module` until the layer is removed."""
    name = call_name(module)
    return Layer(module, name, wrap if name == "forward" else _eager(wrap))


@contextmanager
def own_calls_wrapped(module: nn.Module, wrap: Wrap) -> Iterator[None]:
    """Wrap this thread's calls of `module` until the context is left, and hold on to nothing after it."""
    name, wrap = call_name(module), on_this_thread(wrap)
    with patched(module, name, (wrap if name == "forward" else _eager(wrap))(getattr(module, name))):
        yield


def _eager(wrap: Wrap) -> Wrap:
    disable: Any = torch.compiler.disable
    return lambda compiled: disable(wrap(compiled), recursive=False)


def on_this_thread(wrap: Wrap) -> Wrap:
    """Leave other threads' calls alone: they share the module, and are other requests'."""
    own = threading.get_ident()

    def wrapped(original: Forward) -> Forward:
        watched = wrap(original)

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return (watched if threading.get_ident() == own else original)(*args, **kwargs)

        return forward

    return wrapped
