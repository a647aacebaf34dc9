"""The exceptions a user can meet. Every message names the value, the limit and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import repr as short

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 3
"""How many faults of a document one message names."""


class CachesmithError(Exception):
    """Base of all errors raised on purpose."""


class PolicyError(CachesmithError):
    """A policy file, or its match with a model or sampler, is not usable."""


class EngineError(CachesmithError):
    """An exported bundle or engine is not usable."""


@contextmanager
def refusing(subject: str) -> Iterator[None]:
    """Turn a pydantic refusal in the block or decorated function into one sentence about `subject`."""
    try:
        yield
    except ValidationError as error:
        raise PolicyError(f"{subject} is not valid: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Name field, value and limit of the first few faults."""
    faults = _innermost(error.errors(include_url=False))
    said = [_fault(f["loc"], f["input"], f["msg"]) for f in faults[:_SHOWN]]
    more = len(faults) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")


def _innermost(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    # a refused element also makes its tuple too short, which only repeats the fault
    around = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["loc"] not in around]


def _fault(loc: tuple[int | str, ...], value: object, message: str) -> str:
    field = ".".join(str(part) for part in loc)
    # a fault of several fields together names them itself
    whole = not field and isinstance(value, dict)
    named = "" if whole else f"{field[:120] or 'document'} = {short(value)}: "
    return one_line(f"{named}{message[:1].lower()}{message[1:300]}", 1000)


def one_line(said: object, longest: int = 300) -> str:
    """The text of something that quotes a file, without line breaks or codes that a terminal would obey."""
    text = " ".join(str(said).split())[:longest]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
