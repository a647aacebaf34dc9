"""Options by the group: a command's parameter that is a dataclass stands for the options that are its fields."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

_Command = Callable[..., None]


def flat(command: _Command) -> _Command:
    """Return the command with the fields of its groups as parameters of its own, for typer to read."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }

    @wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    parameters = [each for p in signature.parameters.values() for each in _expanded(p)]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _expanded(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    keyword, group = inspect.Parameter.KEYWORD_ONLY, parameter.annotation
    if not is_dataclass(group):
        yield parameter.replace(kind=keyword)
        return
    types = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, keyword, default=default, annotation=types[field.name])
