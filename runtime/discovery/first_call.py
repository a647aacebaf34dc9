"""A transformer without a row is looked at when it is first called, and that call counts as any other."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.discovery.chain import Chain
from cachesmith.runtime.discovery.discover import DiscoveryError, discover
from cachesmith.runtime.discovery.prove import returned
from cachesmith.runtime.discovery.trace import BlockCall
from cachesmith.runtime.hooks.arguments import argument_names, fresh
from cachesmith.runtime.hooks.module_calls import layer_on_call, on_this_thread
from cachesmith.runtime.hooks.patch import Layer
from cachesmith.runtime.models.adapters import remember

_WAITING: "WeakSet[nn.Module]" = WeakSet()


@contextmanager
def learned_at_first_call(
    transformer: nn.Module, attached: Callable[[], AbstractContextManager[None]], whole: bool
) -> Iterator[None]:
    """Find the adapter of `transformer` in its first call that leaves no cache changed, and from then on be `attached`.

    Whatever `attached` watches sees that call, too: it is repeated. Where blocks are watched as a `whole` they then
    return what they returned, so that they compute once; parts of them compute again. Raises, from within the call,
    what `discover` raises, and looks at the next call in its place. Calls by other threads wait meanwhile. Raises
    `PolicyError` where another context waits for a call of the transformer.
    """
    if transformer in _WAITING:
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    with ExitStack() as stack:
        _WAITING.add(transformer)
        stack.callback(_WAITING.discard, transformer)
        waiting = stack.enter_context(ExitStack())

        def follow(chain: Chain) -> None:
            stack.enter_context(_followed(chain, attached, whole))
            waiting.close()

        # a layer: copies of the transformer that are made before its first call are its own, and wait for nothing
        waiting.callback(Layer(transformer, "forward", _FirstCall(transformer, follow).wrap).remove)
        yield


class _FirstCall:
    """Stands in for a transformer's forward until a call of it tells the blocks, which are then to be followed."""

    def __init__(self, transformer: nn.Module, follow: Callable[[Chain], None]):
        self._transformer, self._follow = transformer, follow
        self._turn, self._learned = threading.Lock(), False

    def wrap(self, below: Callable[..., Any]) -> Callable[..., Any]:
        """Look at a call of `below`; other threads' calls wait until it is over."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self._turn:
                if not self._learned:
                    return self._look(below, args, kwargs)
            return self._transformer(*args, **kwargs)  # another thread's call was the first

        return called

    def _look(self, below: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        kept = fresh((args, kwargs))

        def again() -> Any:
            values, named = fresh(kept)
            return below(*values, **named)

        try:
            found = discover(self._transformer, lambda: below(*args, **kwargs), again)
        except DiscoveryError as error:
            if not error.writes:
                raise
            return error.result
        remember(self._transformer, found.adapter)
        self._follow(found.chain)
        self._learned = True
        return _once(self._transformer, found.chain, *kept)


@contextmanager
def _followed(
    chain: Chain, attached: Callable[[], AbstractContextManager[None]], whole: bool
) -> Iterator[None]:
    with ExitStack() as stack:
        if whole and not torch.is_grad_enabled():
            stack.enter_context(_recorded_blocks(chain))
        stack.enter_context(attached())
        yield


def _once(transformer: nn.Module, chain: Chain, args: Any, kwargs: Any) -> Any:
    """Repeat the call with recorded blocks, then let go of what was recorded."""
    try:
        return transformer(*args, **kwargs)
    finally:
        for call in chain.calls:
            call.arguments, call.outputs = {}, ()


@contextmanager
def _recorded_blocks(chain: Chain) -> Iterator[None]:
    """Blocks pass their streams on, and the last returns what it returned; once that is let go of, they compute."""
    with ExitStack() as stack:
        for run in chain.runs:
            for call in run.calls:
                wrap = on_this_thread(_recorded(call, run.streams, chain))
                stack.callback(layer_on_call(call.place.module, wrap).remove)
        yield


def _recorded(call: BlockCall, streams: tuple[str, ...], chain: Chain) -> Callable[..., Any]:
    names = argument_names(call.place.module)
    own = tuple(name if name in names else names[0] for name in streams)
    last = chain.calls[-1]

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not last.outputs:
                return original(*args, **kwargs)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            return returned(call, last.outputs if call is last else tuple(given[name] for name in own))

        return forward

    return wrap
