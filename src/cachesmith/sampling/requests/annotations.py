"""Does a value fit the annotation of a parameter? Only what JSON can say is judged, not objects."""

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list",
    dict: "an object in braces",
    type(None): "null",
}
"""What JSON can say, as a user would write it."""

_OBJECT = "an object"
FILE = "a tensor, picture or video (the path of a .safetensors, .npy, .png, .jpg or .mp4 file)"
CALLABLE = "a Python function"


def takes(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether the annotation allows the value; what is not annotated, or not understood, allows everything."""
    if value is None and parameter.default is None:
        return True
    return fits(parameter.annotation, value)


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is one of a type, numbers as JSON has them: whole ones are also numbers, booleans are none."""
    kinds = list(_members(annotation))
    if kind_of(value) == _OBJECT or any(kind is Any for kind in kinds):
        return True
    return any(_fits_one(kind, value) for kind in kinds)


def only_tuples(annotation: Any) -> bool:
    """Whether of all sequences an annotation takes tuples alone."""
    kinds = {get_origin(kind) or kind for kind in _members(annotation)}
    return tuple in kinds and list not in kinds and Any not in kinds


def kind_of(value: Any) -> str:
    """Name what kind of value this is."""
    for kind in _NAMES:
        if type(value) is kind:
            break
    else:
        return _OBJECT
    if kind is list and any(kind_of(item) == _OBJECT for item in value):
        return _OBJECT
    return _NAMES[kind]


def names_of(annotation: Any) -> str:
    """Say what a type takes."""
    names = dict.fromkeys(_name(kind) for kind in _members(annotation) if kind is not type(None))
    return " or ".join(names)


def _name(kind: Any) -> str:
    plain = get_origin(kind) or kind
    if _is_callable(kind):
        return CALLABLE
    return _NAMES.get(plain, FILE)


def _members(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, str | TypeVar) or annotation in (inspect.Parameter.empty, Any, object):
        yield Any
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _fits_one(kind: Any, value: Any) -> bool:
    plain = get_origin(kind) or kind
    if plain in (list, tuple) or (isinstance(plain, type) and plain.__name__ == "Sequence"):
        items = [item for item in get_args(kind) if item is not Ellipsis]
        return isinstance(value, list) and (
            not items or all(any(fits(item, one) for item in items) for one in value)
        )
    if plain is dict or (isinstance(plain, type) and issubclass(plain, Mapping)):
        return isinstance(value, dict)
    if plain is float:
        return type(value) in (int, float)
    return type(value) is plain


def _is_callable(kind: Any) -> bool:
    origin = get_origin(kind)
    return origin is not None and getattr(origin, "__name__", "") == "Callable"
