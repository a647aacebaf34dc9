"""A network as it is now, and what is remembered of it while it stays so.

One flat pass, well under a microsecond a module, unlike a walk over `modules()` and `parameters()`. Everything is held
by weak reference: what is remembered of a network keeps neither it nor modules and memory it once had.
"""

from collections.abc import Callable, Hashable
from functools import cached_property
from itertools import chain
from operator import attrgetter, call, is_
from typing import Any, NamedTuple, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import Tensor, nn

from cachesmith.runtime.models.weights import WeightMarks, is_plain

T = TypeVar("T")

ChildSlot = tuple[nn.Module, str]
"""A module, and the name that one of its children has there."""


class Snapshot:
    """The modules and parameters of a network at one time, and what was remembered of them.

    It tells modules or parameters that were added, removed, renamed or replaced (LoRA, quantisation), other memory,
    dtype or layout of a parameter (`.to`, `.data =`, offloading), and writes that PyTorch counts. What a write through
    `.data` does to values it cannot tell: see `Network.recall_weights`.
    """

    def __init__(self, parts: "_Parts"):
        self._modules = _references(parts.modules)
        self._names, self._states = parts.names, _states(parts.parameters)
        self._values = _references([*parts.values, *_storages(parts.parameters)])
        self.remembered: dict[Hashable, Any] = {}
        self.weights: dict[Hashable, Any] = {}

    def again(self) -> "_Parts | None":
        """Modules and parameters, if all are the same and unchanged."""
        modules = [*map(call, self._modules)]
        if None in modules:
            return None
        parts = _parts(modules)
        same = (
            self._names == parts.names
            and self._states == _states(parts.parameters)
            and all(map(is_, map(call, self._values), chain(parts.values, _storages(parts.parameters))))
        )
        return parts if same else None


class Network:
    """All modules and parameters of a transformer, level by level, and the `snapshot` that shows them."""

    def __init__(self, root: nn.Module, parts: "_Parts", snapshot: Snapshot):
        self.root, self.snapshot = root, snapshot
        self.modules, self.parameters = parts.modules, parts.parameters

    @cached_property
    def hooks(self) -> list[Any]:
        """The registries of hooks that diffusers put on modules; these come and go without a trace."""
        return [own["_diffusers_hook"] for own in map(vars, self.modules) if "_diffusers_hook" in own]

    @cached_property
    def marks(self) -> tuple[object, ...]:
        """What differs as soon as weights may have, also where they were written through `.data`."""
        places = self.recall("marks", lambda: WeightMarks(self.parameters))
        return self.snapshot, *places.read(self.parameters)

    def having(self, name: str) -> list[nn.Module]:
        """The modules that have an attribute."""
        indices = self.recall(
            ("having", name), lambda: [i for i, module in enumerate(self.modules) if hasattr(module, name)]
        )
        return [self.modules[index] for index in indices]

    def recall(self, what: Hashable, read: Callable[[], T]) -> T:
        """What `read` returned when modules or parameters last changed."""
        return _recall(self.snapshot.remembered, what, read)

    def recall_weights(self, what: Hashable, read: Callable[[], T]) -> T:
        """What `read` returned when `marks` last changed."""
        values = self.marks[1:]
        if self.snapshot.weights.get("values") != values:
            self.snapshot.weights = {"values": values}
        return _recall(self.snapshot.weights, what, read)


_SNAPSHOTS: "WeakKeyDictionary[nn.Module, Snapshot]" = WeakKeyDictionary()


def look(root: nn.Module, last: Snapshot | None = None) -> Network:
    """Look at a network: what was remembered of it is still there if nothing of it changed.

    Quantised parameters may change unseen inside, and those made in inference mode have no version. A network with such
    is remembered only by who passes the snapshot that he saw `last`.
    """
    snapshot = last or _SNAPSHOTS.get(root)
    parts = None if snapshot is None else snapshot.again()
    if snapshot is None or parts is None:
        parts = _parts([*root.modules()])
        snapshot = Snapshot(parts)
        _SNAPSHOTS.pop(root, None)
        if all(is_plain(value) and not value.is_inference() for value in parts.parameters):
            _SNAPSHOTS[root] = snapshot
    return Network(root, parts, snapshot)


def slots(root: nn.Module, members: list[nn.Module]) -> list[ChildSlot]:
    """Where in a network `members` are. What is remembered of the last look is checked for each of them."""
    snapshot = _SNAPSHOTS.get(root)
    remembered = {} if snapshot is None else snapshot.remembered.setdefault("slots", {})
    found = [_slot(remembered, member) for member in members]
    if None in found:
        remembered.clear()
        remembered.update(
            (id(child), (ref(parent), key))
            for parent in root.modules()
            for key, child in parent._modules.items()
        )
        found = [_slot(remembered, member) for member in members]
    return [slot for slot in found if slot is not None]


def _slot(remembered: dict[int, tuple[ReferenceType[nn.Module], str]], member: nn.Module) -> ChildSlot | None:
    reference, key = remembered.get(id(member), (None, ""))
    holder = None if reference is None else reference()
    return None if holder is None or holder._modules.get(key) is not member else (holder, key)


def _recall(remembered: dict[Hashable, Any], what: Hashable, read: Callable[[], T]) -> T:
    if what not in remembered:
        remembered[what] = read()
    return remembered[what]  # type: ignore[no-any-return]


class _Parts(NamedTuple):
    """Modules, each once; what they hold, in the order of `names`, which has the number of each one's entries, too."""

    modules: list[nn.Module]
    parameters: list[Tensor]
    names: list[str | int]
    values: list[nn.Module | Tensor | None]


def _parts(modules: list[nn.Module]) -> _Parts:
    own = [*map(attrgetter("_parameters"), modules)]
    holders = [*map(attrgetter("_modules"), modules), *own]
    parameters = [value for value in chain.from_iterable(map(dict.values, own)) if value is not None]
    names = [*chain.from_iterable(holders), *map(len, holders)]
    return _Parts(modules, parameters, names, [*chain.from_iterable(map(dict.values, holders))])


def _references(values: list[Any]) -> list[Callable[[], Any]]:
    return [_nothing if value is None else ref(value) for value in values]


def _nothing() -> None:
    return None


def _storages(parameters: list[Tensor]) -> list[Any]:
    """The memory itself: its address would not do, another tensor may get it later."""
    try:
        return [*map(Tensor.untyped_storage, parameters)]
    except (NotImplementedError, RuntimeError):  # of some tensor classes
        return [p.untyped_storage() for p in parameters if is_plain(p)]


def _states(parameters: list[Tensor]) -> list[Any]:
    """How memory is read, and how often it was written to."""
    layout = [
        *map(attrgetter("dtype"), parameters),
        *map(Tensor.stride, parameters),
        *map(Tensor.numel, parameters),
    ]
    try:
        return [*layout, *map(attrgetter("_version"), parameters)]
    except RuntimeError:  # made in inference mode
        return [*layout, *(p._version for p in parameters if not p.is_inference())]
