"""JSON as we read it: objects without repeated keys, numbers that are finite."""

import json
from math import isfinite
from typing import Any

from cachesmith.policies.errors import PolicyError

MAX_VALUES = 50_000
"""Values in one text: the committed policies hold 1,300."""


def parse_object(text: bytes | str, what: str, limit: int = MAX_VALUES) -> dict[str, Any]:
    """Return the JSON object in `text`, or raise a `PolicyError` that says what `what` is wrong with.

    limit: how many values there may be. Each costs some hundred times its two bytes once it is refused.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        # commas part values, or are inside strings
        if (values := text.count(",") + 1) > limit:
            raise PolicyError(
                f"{what} holds about {values:,} values, the limit is {limit:,}; this is not a file of cachesmith"
            )
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise PolicyError(f"{what} is nested too deeply; this is not a policy file of cachesmith") from None
    except ValueError as error:
        raise PolicyError(
            f"{what} is not valid JSON ({str(error)[:200]}); the file is damaged: copy it again"
        ) from None
    if not isinstance(value, dict):
        raise PolicyError(
            f"{what} is a JSON {type(value).__name__}, expected an object; this is not a policy file"
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} is given twice")
        found[key] = value
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:40]} is too large")
    return number
