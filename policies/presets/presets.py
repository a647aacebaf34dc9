"""Presets by name: each family's file lists its own."""

import inspect
from collections.abc import Callable

from cachesmith.policies.errors import PolicyError
from cachesmith.policies.policy import Policy
from cachesmith.policies.presets import gates, solvers, static, tokens
from cachesmith.policies.presets.static import MEASURED

PRESETS: dict[str, Callable[..., Policy]] = {
    **solvers.SOLVER_PRESETS,
    **static.STATIC_PRESETS,
    **tokens.TOKEN_PRESETS,
    **gates.GATE_PRESETS,
}
"""Name -> preset; each may be called without options."""


def preset(name: str, /, **options: object) -> Policy:
    """Return the preset with these options; an unknown name or option is refused with the known ones."""
    presets = PRESETS | MEASURED
    if name not in presets:
        raise PolicyError(
            f"there is no preset {name!r}; choose from {', '.join(presets)}, or fit a method on a model: "
            "cachesmith fit MODEL --method NAME"
        )
    known = inspect.signature(presets[name]).parameters
    for option in options:
        if option not in known:
            raise PolicyError(
                f"preset {name} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return presets[name](**options)


def parse_preset(text: str) -> Policy:
    """Return the preset written as on the command line, such as `taylorseer:interval=6,order=1`."""
    name, _, listed = text.partition(":")
    options: dict[str, object] = {}
    for item in listed.split(",") if listed else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in options:
            raise PolicyError(
                f"cannot read {item!r} in {text!r}; write each option once, as NAME:KEY=VALUE,KEY=VALUE"
            )
        options[key] = _number(value, text)
    return preset(name.strip(), **options)


def _number(value: str, text: str) -> int | float:
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    raise PolicyError(
        f"cannot read {value[:40]!r} in {text[:80]!r} as a number; write, for example, interval=6"
    )
