"""The proofs: the traced call, repeated with its blocks replaced by what they returned."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cachesmith.runtime.discovery.chain import Chain, Run
from cachesmith.runtime.discovery.trace import BlockCall, Spec, version
from cachesmith.runtime.hooks.arguments import argument_names
from cachesmith.runtime.hooks.module_calls import own_calls_wrapped
from cachesmith.runtime.models.adapter import JOINED

Outputs = tuple[Any, ...]


class Replay:
    """Repeats a traced call without its blocks. `entered` is what the chain's first block was then given."""

    def __init__(self, call: Callable[[], Any], chain: Chain, result: Any):
        self.call, self.chain, self.result = call, chain, result
        self.entered: dict[str, Any] = {}

    def same(self, changed: Mapping[int, Tensor] | None = None, without: tuple[Run, ...] = ()) -> bool:
        """Whether the call returns what it returned, to the bit.

        `changed` outputs of the chain's last block are others; lists in `without` return NaN instead of computing.
        """
        last = self.chain.calls[-1]
        outputs = tuple((changed or {}).get(j, o) for j, o in enumerate(last.outputs))
        with ExitStack() as stack, torch.no_grad():
            for run in self.chain.runs:
                for call in run.calls:
                    final = outputs if call is last else None
                    stack.enter_context(self._replaced(call, run, final))
            for run in without:
                for call in run.calls:
                    stack.enter_context(_nothing(call))
            return _alike(self.call(), self.result)

    @contextmanager
    def _replaced(self, call: BlockCall, run: Run, outputs: Outputs | None) -> Iterator[None]:
        """Have a block return `outputs`, or by default pass its streams on."""
        names = argument_names(call.place.module)
        own = tuple(n if n in names else names[0] for n in run.streams)

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                given = {**dict(zip(names, args, strict=False)), **kwargs}
                if call is self.chain.calls[0]:
                    self.entered = given
                return returned(call, tuple(given[n] for n in own) if outputs is None else outputs)

            return forward

        with own_calls_wrapped(call.place.module, wrap):
            yield


@contextmanager
def _nothing(call: BlockCall) -> Iterator[None]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*_: Any, **__: Any) -> Any:
            return returned(call, tuple(None if s is None else nonsense(s) for s in call.made))

        return forward

    with own_calls_wrapped(call.place.module, wrap):
        yield


def nonsense(spec: Spec) -> Tensor:
    """A tensor that spoils whatever it is used for."""
    filler = float("nan") if spec.dtype.is_floating_point else 0
    return torch.full(spec.shape, filler, dtype=spec.dtype, device=spec.device)


def returned(call: BlockCall, outputs: Outputs) -> Any:
    """Pack outputs as the block does."""
    return outputs if call.sequence else outputs[0]


def live_outputs(replay: Replay) -> tuple[int, ...]:
    """The outputs of the last block that are still read: nonsense in their place changes the result."""
    last = replay.chain.calls[-1]
    floating = {j: s for j, s in enumerate(last.made) if s is not None and s.dtype.is_floating_point}
    if len(floating) == 1:
        return tuple(floating)
    return tuple(j for j, s in floating.items() if not _survives(replay, {j: nonsense(s)}))


def idle_runs(replay: Replay, others: list[Run], live: tuple[str, ...]) -> list[tuple[Run, int]]:
    """Runs that cannot matter once the chain's output is known, each with how many of its last blocks still do.

    A run may matter by its last blocks alone, where lists take turns. What enters the chain must stay as it was: its
    output is known as what it adds to that.
    """
    if others and _idle(replay, tuple(others), live):
        return [(run, 0) for run in others]
    found = []
    for run in others:
        for kept in (0, 1):
            short = Run(run.path, run.calls[: len(run.calls) - kept], run.streams)
            if short.calls and _idle(replay, (short,), live):
                found.append((run, kept))
                break
    return found


def _idle(replay: Replay, runs: tuple[Run, ...], live: tuple[str, ...]) -> bool:
    first = replay.chain.calls[0]
    if not _survives(replay, {}, runs):
        return False
    names = first.specs if live == JOINED else live
    pairs = ((first.arguments[n], replay.entered.get(n)) for n in names if n in replay.chain.runs[0].streams)
    return all(isinstance(b, Tensor) and torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def _survives(replay: Replay, changed: Mapping[int, Tensor], without: tuple[Run, ...] = ()) -> bool:
    try:
        return replay.same(changed, without)
    except Exception:
        # nonsense may break what it reaches, which is an answer
        return False


def written(chain: Chain) -> str:
    """Return what was written to in place among the tensors that a cache would remember, or nothing."""
    first, last = chain.calls[0], chain.calls[-1]
    for name in chain.runs[0].streams:
        value = first.arguments.get(name)
        if isinstance(value, Tensor) and version(value) != first.versions[name]:
            return f"the stream `{name}` into {first.place.path}"
    for output, count in zip(last.outputs, last.written, strict=True):
        if isinstance(output, Tensor) and version(output) != count:
            return f"what {last.place.path} returned"
    return ""


def _alike(a: Any, b: Any) -> bool:
    """Whether two results hold the same tensors, to the bit."""
    x, y = [*tensors_in(a)], [*tensors_in(b)]
    return len(x) == len(y) > 0 and all(
        p.shape == q.shape and torch.equal(p, q) for p, q in zip(x, y, strict=True)
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of containers and model outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
