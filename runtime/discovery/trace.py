"""One call of a transformer, watched: which blocks it calls, and which tensors go from one block to the next.

Tensors are told apart by identity, so that nothing is copied. Held are the streams into every list's first block and
out of its latest: what the call itself holds or has just let go of.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cachesmith.runtime.discovery.state import State
from cachesmith.runtime.hooks.arguments import argument_names
from cachesmith.runtime.hooks.module_calls import own_calls_wrapped

_Shape = tuple[int, ...]


class Spec(NamedTuple):
    """What a tensor looks like."""

    shape: _Shape
    dtype: torch.dtype
    device: torch.device


@dataclass(eq=False)
class Place:
    """A block's place: the path of its list, and its index there."""

    path: str
    index: int
    module: nn.Module


@dataclass(eq=False)
class BlockCall:
    """One call of a block.

    `arguments` and `outputs` are held for the first and the latest call of a list only; `specs` and `made` say what
    they looked like. `links` are the arguments that continue an output of the call before, in this list or, for its
    first block, in another one. `reads` are the lists of which it was given what a block before the latest one made.
    `writes` names what it changed beside its outputs.
    """

    place: Place
    arguments: dict[str, Any]
    specs: dict[str, Spec]
    versions: dict[str, int]
    same: frozenset[str] = frozenset()
    outputs: tuple[Any, ...] = ()
    made: tuple[Spec | None, ...] = ()
    written: tuple[int, ...] = ()
    sequence: bool = False
    links: list["Link"] = field(default_factory=list)
    reads: frozenset[str] = frozenset()
    writes: str = ""


class Link(NamedTuple):
    """An argument that continues `outputs` of the latest call in the list `source`.

    `how`: `same` (the tensor itself or a view of all of it), `equal` (the same numbers), `joined` (several outputs
    along the tokens), or `work` (of the same shape: the transformer does something in between).
    """

    source: str
    outputs: tuple[int, ...]
    argument: str
    how: str


class CallTrace:
    """Watches the blocks of `transformer` while `call` runs once."""

    def __init__(self, transformer: nn.Module, call: Callable[[], Any]):
        self.calls: list[BlockCall] = []
        self.places = list(places(transformer))
        self.repeated: set[str] = set()
        self._latest: dict[str, BlockCall] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._inside = False
        with ExitStack() as stack, torch.no_grad():
            for place in self.places:
                stack.enter_context(own_calls_wrapped(place.module, self._watch(place)))
            self.result = call()

    def _watch(self, place: Place) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        names = argument_names(place.module)

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                if self._inside:
                    return original(*args, **kwargs)
                call = self._enter(place, {**dict(zip(names, args, strict=False)), **kwargs})
                state = State.of(place.module, call.arguments)
                self._inside = True
                try:
                    result = original(*args, **kwargs)
                finally:
                    self._inside = False
                call.writes = state.changed()
                self._leave(call, result)
                return result

            return forward

        return wrap

    def _enter(self, place: Place, arguments: dict[str, Any]) -> BlockCall:
        tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor)}
        call = BlockCall(place, arguments, {n: spec(v) for n, v in tensors.items()}, _versions(tensors))
        before = self._latest.get(place.path)
        if before is not None:
            call.links = list(_continues(place.path, before, tensors))
            call.same = frozenset(n for n, v in arguments.items() if v is before.arguments.get(n))
        else:
            others = [(p, c) for p, c in self._latest.items() if p != place.path]
            call.links = [link for path, other in others for link in _crosses(path, other, tensors)]
        call.reads = frozenset(self._makers(tensors))
        return call

    def _makers(self, tensors: dict[str, Tensor]) -> Iterator[str]:
        """The lists whose blocks made one of these tensors, but for what their latest ones made."""
        for value in tensors.values():
            maker, path = self._made.get(id(value), (None, ""))
            if maker is None or maker() is not value:
                continue
            if not any(value is output for output in self._latest[path].outputs):
                yield path

    def _leave(self, call: BlockCall, result: Any) -> None:
        call.sequence = isinstance(result, tuple | list)
        call.outputs = tuple(result) if call.sequence else (result,)
        call.written = tuple(version(o) if isinstance(o, Tensor) else 0 for o in call.outputs)
        call.made = tuple(spec(o) if isinstance(o, Tensor) else None for o in call.outputs)
        path = call.place.path
        before = self._latest.get(path)
        if any(c.place is call.place for c in self.calls):
            self.repeated.add(path)
        if before is not None:
            before.outputs = ()
            if len([c for c in self.calls if c.place.path == path]) > 1:
                before.arguments = {n: v for n, v in before.arguments.items() if not isinstance(v, Tensor)}
        self._made.update({id(o): (weakref.ref(o), path) for o in call.outputs if isinstance(o, Tensor)})
        self._latest[path] = call
        self.calls.append(call)


def places(transformer: nn.Module) -> Iterator[Place]:
    """Every block that may be cached: the entries with more than one weight of the outermost lists of modules."""
    outer: list[str] = []
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(path.startswith(p) for p in outer):
            continue
        blocks = [*module.children()]
        if not path or not all(_heavy(block) for block in blocks):
            continue
        outer.extend(f"{path}.{index}." for index in range(len(blocks)))
        yield from (Place(path, index, block) for index, block in enumerate(blocks))


def _heavy(block: nn.Module) -> bool:
    matrices = (m for m in block.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False)))
    return sum(1 for _ in matrices) > 1


def spec(value: Tensor) -> Spec:
    """Describe a tensor."""
    return Spec(tuple(value.shape), value.dtype, value.device)


def version(value: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode do not count."""
    return 0 if value.is_inference() else value._version


def _versions(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: version(value) for name, value in tensors.items()}


def _outputs(call: BlockCall) -> list[tuple[int, Tensor]]:
    return [(j, o) for j, o in enumerate(call.outputs) if isinstance(o, Tensor)]


def _continues(path: str, before: BlockCall, tensors: dict[str, Tensor]) -> Iterator[Link]:
    """Links between neighbours of one list: by identity, else by shape, as where the transformer adds to a stream."""
    taken: set[str] = set()
    left = []
    for j, output in _outputs(before):
        name = next((n for n, v in tensors.items() if n not in taken and _same(v, output)), None)
        if name is None:
            left.append((j, output))
        else:
            taken.add(name)
            yield Link(path, (j,), name, "same")
    for j, output in left:
        for name, value in tensors.items():
            changed = name in before.specs and before.arguments.get(name) is not value
            if name not in taken and changed and spec(value) == spec(output) == before.specs[name]:
                taken.add(name)
                yield Link(path, (j,), name, "work")
                break


def _crosses(path: str, before: BlockCall, tensors: dict[str, Tensor]) -> Iterator[Link]:
    """Links over the border of two lists, which are compared by their numbers where they are other tensors."""
    outputs = _outputs(before)
    floats = {n: v for n, v in tensors.items() if v.is_floating_point() and v.ndim > 1}
    for name, value in floats.items():
        for j, output in outputs:
            if _same(value, output):
                yield Link(path, (j,), name, "same")
                break
            if spec(value) == spec(output) and torch.equal(value, output):
                yield Link(path, (j,), name, "equal")
                break
        else:
            if len(outputs) > 1 and _joined(value, [o for _, o in outputs]):
                yield Link(path, tuple(j for j, _ in outputs), name, "joined")


def _same(value: Tensor, output: Tensor) -> bool:
    """Whether two tensors are one, or one is a view of all of the other."""
    if value is output:
        return True
    return (
        value.numel() == output.numel() > 0
        and value.dtype == output.dtype
        and value.device == output.device
        and value.device.type != "meta"
        and value.data_ptr() == output.data_ptr()
    )


def _joined(value: Tensor, outputs: list[Tensor]) -> bool:
    """Whether `value` is all outputs along the tokens; some may have been worked on, as with text of every layer."""
    if any(o.ndim != 3 or o.shape[0] != value.shape[0] or o.shape[2:] != value.shape[2:] for o in outputs):
        return False
    lengths = [o.shape[1] for o in outputs]
    if value.ndim != 3 or sum(lengths) != value.shape[1]:
        return False
    return any(torch.equal(p, o) for p, o in zip(torch.split(value, lengths, 1), outputs, strict=True))
