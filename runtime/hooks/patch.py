"""Replace or wrap an attribute of one object for the length of a context, and undo it whatever happened meanwhile.

Other tools wrap the same attributes (offloading, casting, caches) and may come and go in any order. So nothing is ever
put back to what it was on entry: our own layer is taken out of wherever it is by then.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

_ABSENT: Any = object()
_MARK = "_cachesmith_layer"


class Layer:
    """A wrapper around `target.name`, on the instance only, until `remove`.

    wrap: makes the wrapper from a function that calls what lies below. What stands on the instance is a bound method:
    a deep copy of the target gets one that calls the copy's own code, a pickled target one of its class.
    """

    def __init__(self, target: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]):
        self.target, self.name, self.alive = target, name, True
        self._below = _living(vars(target).get(name, _ABSENT))
        plain = self._original()
        function = getattr(plain, "__func__", plain)

        def below(*args: Any, **kwargs: Any) -> Any:
            return self._original()(*args, **kwargs)

        wrapper = wrap(below)

        @wraps(function)
        def method(this: Any, *args: Any, **kwargs: Any) -> Any:
            if this is not target:
                return self._copied(this, *args, **kwargs)
            return (wrapper if self.alive else below)(*args, **kwargs)

        method.__name__ = name  # what a pickled method is looked up by
        if function is plain:
            vars(method).pop("__signature__", None)
            method.__wrapped__ = _with_self(plain)
        self.method = MethodType(method, target)
        setattr(method, _MARK, self)
        vars(target)[name] = self.method

    @property
    def on_top(self) -> bool:
        """Whether nothing was put over the layer, or in its place."""
        return vars(self.target).get(self.name) is self.method

    def remove(self) -> None:
        """Take the layer out; whoever wrapped it meanwhile calls what lay below."""
        self.alive = False
        if self.on_top:
            _put(self.target, self.name, self._below)
            return
        upper = _layer(vars(self.target).get(self.name))
        while upper is not None:
            if upper._below is self.method:
                upper._below = self._below
            upper = _layer(upper._below)
        _splice(self.target, self.method, self._original())

    def _original(self) -> Callable[..., Any]:
        if self._below is not _ABSENT:
            return self._below  # type: ignore[no-any-return]
        return getattr(type(self.target), self.name).__get__(self.target)  # type: ignore[no-any-return]

    def _copied(self, this: Any, *args: Any, **kwargs: Any) -> Any:
        """What a copy of the target, which inherits the layer, does: its own."""
        if self._below is _ABSENT:
            return getattr(type(this), self.name)(this, *args, **kwargs)
        if isinstance(self._below, MethodType) and self._below.__self__ is self.target:
            return self._below.__func__(this, *args, **kwargs)
        return self._below(*args, **kwargs)


def _with_self(function: Callable[..., Any]) -> Callable[..., Any]:
    """What only shows the signature of somebody's function as a method has it: after `self`.

    Not on the method itself, since wrappers copy what stands there.
    """

    def shown() -> None: ...

    signature = inspect.signature(function)
    this = inspect.Parameter("this", inspect.Parameter.POSITIONAL_ONLY)
    vars(shown)["__signature__"] = signature.replace(parameters=[this, *signature.parameters.values()])
    return shown


@contextmanager
def heard(owner: Any, name: str, then: Callable[..., None]) -> Iterator[None]:
    """Call `then`, with the same arguments, after every call of `owner`'s method `name`.

    A deep copy of the owner calls its own method and is not heard. Pipelines ask for the method's signature: it stays.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def listened(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            then(*args, **kwargs)
            return result

        return listened

    layer = Layer(owner, name, wrap)
    try:
        yield
    finally:
        layer.remove()


class _Patch:
    """A value that stands in for another until its context is left."""

    def __init__(self, target: Any, name: str, value: Any):
        self.target, self.name, self.value = target, name, value
        self.before = vars(target).get(name, _ABSENT)


_PATCHES: list[_Patch] = []


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set `target.name` on the instance only; on exit it is what it would be without this context."""
    patch = _Patch(target, name, value)
    _PATCHES.append(patch)
    vars(target)[name] = value
    try:
        yield
    finally:
        _PATCHES.remove(patch)
        if vars(target).get(name, _ABSENT) is value:
            _put(target, name, patch.before)
        for later in _PATCHES:
            if later.target is target and later.name == name and later.before is value:
                later.before = patch.before


def method_of(copied: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """What `method`, as it was found on an object, is on that object or a deep copy of it."""
    function = getattr(method, "__func__", None)
    return method if function is None else MethodType(function, copied)


def strip(target: Any) -> None:
    """Take layers off a copy of what had some."""
    for name, value in [*vars(target).items()]:
        if isinstance(value, MethodType) and (
            hasattr(value.__func__, _MARK) or value.__func__ is getattr(type(target), name, None)
        ):
            del vars(target)[name]


def _put(target: Any, name: str, value: Any) -> None:
    if value is _ABSENT:
        vars(target).pop(name, None)
    else:
        vars(target)[name] = value


def _layer(value: Any) -> Layer | None:
    """The layer whose method `value` is: others' wrappers copy our marks."""
    layer = getattr(getattr(value, "__func__", None), _MARK, None)
    return layer if isinstance(layer, Layer) and layer.method is value else None


def _living(value: Any) -> Any:
    """What is left of `value` without layers that were removed."""
    while (layer := _layer(value)) is not None and not layer.alive:
        value = layer._below
    return value


def _splice(module: Any, method: Any, below: Any) -> None:
    """Have accelerate's and diffusers' hooks on `module` forget `method`, which they took for the module's own."""
    if vars(module).get("_old_forward") is method:
        vars(module)["_old_forward"] = below
    registry = vars(module).get("_diffusers_hook")
    for reference in getattr(registry, "_fn_refs", ()):
        for field in ("forward", "original_forward"):
            if getattr(reference, field, None) is method:
                setattr(reference, field, below)
    top = vars(module).get("forward")
    if getattr(top, "__wrapped__", None) is method:
        top.__wrapped__ = below
