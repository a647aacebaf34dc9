"""A transformer without a row is looked at when it is first called, and that call counts as any other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from cachesmith.runtime.discovery.chain import Chain
from cachesmith.runtime.discovery.discover import DiscoveryError, discover
from cachesmith.runtime.discovery.prove import returned
from cachesmith.runtime.discovery.trace import BlockCall, parameters
from cachesmith.runtime.hooks.arguments import fresh
from cachesmith.runtime.hooks.member_layers import layer_on_call
from cachesmith.runtime.hooks.patch import Layer
from cachesmith.runtime.models.adapters import remember


@contextmanager
def learned_at_first_call(
    transformer: nn.Module, attached: Callable[[], AbstractContextManager[None]], whole: bool
) -> Iterator[None]:
    """Find the adapter of `transformer` in its first call that leaves no cache changed, and from then on be `attached`.

    Whatever `attached` watches sees that call, too: it is repeated. Where blocks are watched as a `whole` they then
    return what they returned, so that they compute once; parts of them compute again. Raises, from within the call,
    what `discover` raises, and looks at the next call in its place.
    """
    with ExitStack() as stack:
        waiting = stack.enter_context(ExitStack())

        def first(*args: Any, **kwargs: Any) -> Any:
            waiting.close()
            original, kept = transformer.forward, fresh((args, kwargs))

            def again() -> Any:
                values, named = fresh(kept)
                return original(*values, **named)

            learned = False
            try:
                found = discover(transformer, lambda: original(*args, **kwargs), again)
                remember(transformer, found.adapter)
                stack.enter_context(_followed(found.chain, attached, whole))
                learned = True
            except DiscoveryError as error:
                if not error.writes:
                    raise
                return error.result
            finally:
                if not learned:  # nor is the next call to go by without the policy, and without a word
                    wait()
            return _once(transformer, found.chain, *kept)

        def wait() -> None:
            # a layer: copies of the transformer that are made before its first call are its own, and wait for nothing
            waiting.callback(Layer(transformer, "forward", lambda _: first).remove)

        wait()
        yield


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
                layer = layer_on_call(call.place.module, _recorded(call, run.streams, chain))
                stack.callback(layer.remove)
        yield


def _recorded(call: BlockCall, streams: tuple[str, ...], chain: Chain) -> Callable[..., Any]:
    names = parameters(call.place.module)
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
