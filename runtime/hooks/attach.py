"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them. A patch was chosen over diffusers'
`ModelHook`s because a unit spans several modules with one decision, because modules below a block are no hook targets
there, and because most pipelines open no cache context. Everything is put back on exit; the modules' classes,
parameters and state dicts are never touched.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.arguments import fresh, reader
from cachesmith.runtime.hooks.clock import ANOTHER_THREAD, Clock
from cachesmith.runtime.hooks.member_layers import MemberLayers
from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.patch import Layer
from cachesmith.runtime.hooks.runner import Runner, UnitBackend
from cachesmith.runtime.hooks.unit_call import Foresees, TransformerCall
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.foreign_hooks import diffusers_hooks, has_accelerate_hook
from cachesmith.runtime.models.units import IMAGE_STREAM, Unit

_ATTACHED: "WeakSet[nn.Module]" = WeakSet()


@contextmanager
def attach(
    transformer: nn.Module,
    units: tuple[Unit, ...],
    runner: Runner,
    clock: Clock,
    backend: UnitBackend | None = None,
    foresees: Foresees | None = None,
) -> Iterator[MemberLayers]:
    """Route every unit call of `transformer` through `runner` until the context is left.

    backend: what computes the units that are to be computed; by default, their own modules. foresees: lets lists that
    only blocks read (`Adapter.idle`) be passed by where it says that all blocks will be forecast.

    Yields what can be bound to other units. Raises `PolicyError` if another session is attached to the transformer.
    """
    if transformer in _ATTACHED:
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    call = TransformerCall(runner, clock, backend, foresees if adapter_for(transformer).idle else None)
    layers = MemberLayers(transformer, call)
    with ExitStack() as stack:
        _ATTACHED.add(transformer)
        stack.callback(_ATTACHED.discard, transformer)
        stack.enter_context(_watch_calls(transformer, call, layers))
        stack.callback(layers.remove)
        layers.bind(units)
        yield layers


_CHANGING = ("layerwise_casting", "group_offloading")
"""How the modules of diffusers end in which hooks that change weights for the length of a call are defined."""


def _changes_itself(transformer: nn.Module) -> bool:
    """Whether a call casts or moves weights that another call at the same time would use."""
    return any(
        has_accelerate_hook(module)
        or any(type(hook).__module__.endswith(_CHANGING) for hook in diffusers_hooks(module))
        for module in transformer.modules()
    )


def _batch(latents: Any) -> Tensor | None:
    """The latents [B, ...] that a transformer is given; some are given a list with one tensor a sample."""
    if isinstance(latents, list | tuple) and latents and all(isinstance(each, Tensor) for each in latents):
        one = len({each.shape for each in latents}) == 1
        return torch.stack([*latents]) if one else None
    return latents if isinstance(latents, Tensor) else None


class _Hook:
    """A hook that stays behind when its module is copied or pickled."""

    def __init__(self, then: Callable[..., Any]):
        self._then = then

    def __call__(self, *args: Any) -> Any:
        return self._then(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _silent

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _no_hook, ()


def _silent(*_: Any) -> None:
    """What copies of a hook do."""


def _no_hook() -> Callable[..., None]:
    return _silent


@contextmanager
def _watch_calls(transformer: Any, call: TransformerCall, layers: MemberLayers) -> Iterator[None]:
    """Tell the runner of every call. Hooks, since CPU offloading replaces `forward` after each pipeline call."""
    read = reader(transformer, (adapter_for(transformer).timestep, IMAGE_STREAM))
    given: Any = None  # what the call in hand was given: some models empty the lists that they are given

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not call.enter(transformer, lambda: not call.clock.stranger() or _changes_itself(transformer)):
            warnings.warn(f"cachesmith left a call alone: {ANOTHER_THREAD}", RuntimeWarning, stacklevel=2)
            return
        nonlocal given
        given = fresh((args, kwargs))
        timestep, latents = read(args, kwargs)
        latents = _batch(latents)
        call.begin(replace(call.clock.tick(timestep, latents), latents=latents))
        layers.refresh()

    def returned(output: Any) -> bool:
        """Tell the runner what the call returned; whether the call is to be made again."""
        sample = _first_tensor(output)
        return sample is not None and call.runner.end(sample)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """`output` is None where the call failed."""
        nonlocal given
        if not call.open:  # it was left alone
            return None
        try:
            if output is None or not (call.void or returned(output)):
                return None
            call.idles = False
            args, kwargs = given
            output = module.forward(*args, **kwargs)
            returned(output)
            return output
        finally:
            given = None
            call.leave()

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(_Hook(before), with_kwargs=True).remove)
        hook = transformer.register_forward_hook(_Hook(after), with_kwargs=True, always_call=True)
        stack.callback(hook.remove)
        stack.enter_context(contexts_heard(transformer, call.clock))
        yield


@contextmanager
def contexts_heard(transformer: Any, clock: Clock) -> Iterator[None]:
    """Have the pipeline's own `cache_context("cond")` name the guidance branch."""
    with ExitStack() as stack:
        if hasattr(transformer, "cache_context"):
            stack.callback(Layer(transformer, "cache_context", _named(clock)).remove)
        yield


def _first_tensor(output: Any) -> Any:
    """The transformer's prediction: alone, first of a tuple or output object, or of a list of samples."""
    while isinstance(output, dict | tuple | list) and output:
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, Tensor) else None


def _named(clock: Clock) -> Callable[[Forward], Forward]:
    def wrap(original: Forward) -> Forward:
        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with original(name, *args, **kwargs) as value:
                before, clock.context = clock.context, name
                try:
                    yield value
                finally:
                    clock.context = before

        return cache_context

    return wrap
