"""What a user sees when something is wrong: one sentence on stderr, and an exit code."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from textwrap import shorten
from typing import ParamSpec, TypeVar

import typer

from cachesmith.commands.output import errors
from cachesmith.policies import CachesmithError

P = ParamSpec("P")
R = TypeVar("R")

FAILED = 1
"""Exit code of an error; 2 is typer's for wrong usage."""
BELOW = 3
"""Exit code of `validate` when a profile is worse than it has to be."""
INTERRUPTED = 130

LONGEST = 160
"""Characters of a library's message that are passed on."""

OPTIONAL = ("optuna", "sklearn", "matplotlib", "torchmetrics", "PIL")
"""What only calibration needs."""


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command: errors become one sentence. `CACHESMITH_TRACEBACK=1` shows where they come from."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with spoken_warnings():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = sentence(error)
            if message is None or os.environ.get("CACHESMITH_TRACEBACK"):
                raise
            complain(message)
            raise typer.Exit(FAILED) from None

    return run


def sentence(error: Exception) -> str | None:
    """Say what the user can do about `error`; None if it is not the user's."""
    match error:
        case CachesmithError() | ValueError():
            return str(error)
        case BrokenPipeError():
            return None
        case OSError(filename=str(path), strerror=str(reason)):
            return f"{path}: {reason}; check the path and its permissions"
        case OSError():
            return first_line(error)
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in OPTIONAL:
            return f"{name} is not installed; install it with: pip install 'cachesmith[calibrate]'"
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":
            return f"{first_line(error)} Try a smaller --batch, or --dtype bfloat16."
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return shorten(lines[0], LONGEST, placeholder=" ...") if lines else type(error).__name__


def complain(message: str) -> None:
    """Print an error."""
    console = errors()
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Print cachesmith's own warnings as sentences, each once, and leave out those of libraries."""
    said: set[str] = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            errors().print(
                f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=RuntimeWarning, module=r"cachesmith\.")
        warnings.showwarning = say
        yield
