"""A module call's arguments by name, however they are passed."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

from torch import nn

from cachesmith.runtime.features import Feature


def namer(module: nn.Module, names: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a call's arguments their names; the first has the unknown one of `names`."""
    parameters = argument_names(module)
    first = next((n for n in names if n not in parameters), parameters[0])

    def name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        return {first if n == parameters[0] else n: value for n, value in given.items()}

    return name


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, whoever wrapped it."""
    plain: Any = getattr(module, "_orig_mod", module)
    own, forward = type(plain).forward, plain.forward
    if getattr(forward, "__func__", None) is own:
        return _named(own)[1:]
    parameters = inspect.signature(forward).parameters
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        # somebody's wrapper that takes anything
        return _named(own)[1:]
    return tuple(parameters)


@lru_cache(maxsize=1024)
def _named(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def reader(module: nn.Module, names: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """Return a function that picks the arguments `names` out of a call; an unknown name means the first one."""
    return _reader(argument_names(module), names)


@lru_cache(maxsize=1024)
def _reader(parameters: tuple[str, ...], names: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    places = _places(parameters, names)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(kwargs[n] if n in kwargs else args[i] for n, i in places)

    return read


Change = Callable[[str, Any], Any]
"""Makes another value of an argument, from its name and value."""

ArgumentList = tuple[tuple[Any, ...], dict[str, Any]]


def mapper(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any], Change], ArgumentList]:
    """Return a function that changes every argument of a call."""
    return _mapper(argument_names(module))


@lru_cache(maxsize=1024)
def _mapper(parameters: tuple[str, ...]) -> Callable[[tuple[Any, ...], dict[str, Any], Change], ArgumentList]:
    def changed(args: tuple[Any, ...], kwargs: dict[str, Any], change: Change) -> ArgumentList:
        places = chain(parameters, repeat("args"))
        placed = tuple(change(n, value) for n, value in zip(places, args, strict=False))
        return placed, {n: change(n, value) for n, value in kwargs.items()}

    return changed


def writer(module: nn.Module, names: tuple[str, ...]) -> Callable[..., ArgumentList]:
    """Return a function that puts other values in the place of what `reader` reads."""
    return _writer(argument_names(module), names)


@lru_cache(maxsize=1024)
def _writer(parameters: tuple[str, ...], names: tuple[str, ...]) -> Callable[..., ArgumentList]:
    places = _places(parameters, names)

    def write(args: tuple[Any, ...], kwargs: dict[str, Any], values: Feature) -> ArgumentList:
        placed, named = [*args], {**kwargs}
        for (name, index), value in zip(places, values, strict=True):
            if name in kwargs:
                named[name] = value
            else:
                placed[index] = value
        return tuple(placed), named

    return write


def _places(parameters: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    known = tuple(n if n in parameters else parameters[0] for n in names)
    return tuple((n, parameters.index(n)) for n in known)


def fresh(value: Any) -> Any:
    """Copy lists and dicts, which some models consume; tensors stay the same."""
    match value:
        case dict():
            return type(value)((key, fresh(item)) for key, item in value.items())
        case list():
            return [fresh(item) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(fresh(item) for item in value)
        case _:
            return value
