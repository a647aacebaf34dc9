"""What a user sees when something is wrong: one sentence on stderr, and an exit code."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from textwrap import shorten

import typer

from cachesmith.commands.output import errors
from cachesmith.commands.shared.spoken import spoken_warnings
from cachesmith.policies import CachesmithError

FAILED = 1
"""Exit code of an error; 2 is typer's for wrong usage."""
BELOW = 3
"""Exit code of `validate` when a profile is worse than it has to be."""
INTERRUPTED = 130

_LONGEST = 300
"""Characters of a library's message that are passed on."""

INSTALL = {
    **dict.fromkeys(("optuna", "sklearn", "matplotlib", "torchmetrics"), "'cachesmith[calibrate]'"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "'cachesmith[export]'"),
    "tensorrt": "'cachesmith[tensorrt]'",
    "tensorrt_rtx": "'cachesmith[tensorrt-rtx]'",
    "cache_dit": "'cachesmith[bench]'",
    "ray": "'cachesmith[fleet]'",
    "PIL": "pillow",
    **dict.fromkeys(("imageio", "imageio_ffmpeg"), "'cachesmith[video]'"),
    **{name: name for name in ("transformers", "sentencepiece", "accelerate", "peft", "scipy")},
}
"""Optional module -> what pip is told to install."""


@contextmanager
def told(verbose: bool = False) -> Iterator[None]:
    """Turn errors in the block into one sentence and an exit code; with `verbose`, show where they come from too.

    With `CACHESMITH_TRACEBACK=1`, and where it is our own fault, the error is raised as it is.
    """
    try:
        with spoken_warnings(verbose):
            yield
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        message = sentence(error)
        if message is None or os.environ.get("CACHESMITH_TRACEBACK"):
            raise
        if verbose:
            errors().print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        complain(message)
        raise typer.Exit(FAILED) from None


def need(*modules: str) -> None:
    """Raise `CachesmithError` before any work is done if an optional module is not installed."""
    for name in modules:
        if find_spec(name) is None:
            raise CachesmithError(missing(name))


def missing(module: str) -> str:
    """Say how to install an optional module."""
    return f"{module} is not installed; install it with: pip install {INSTALL[module]}"


def sentence(error: Exception) -> str | None:
    """Say what the user can do about `error`; None if it is not the user's."""
    match error:
        case CachesmithError():
            return str(error)
        case BrokenPipeError() | typer.Exit() | typer.BadParameter():
            return None
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in INSTALL:
            return missing(name.partition(".")[0])
        case OSError(filename=str(path), strerror=str(reason)):
            return f"{path}: {reason}; check the path and its permissions"
        case OSError() | ValueError():
            return first_line(error)
        case MemoryError() | RuntimeError() if _is_out_of_memory(error):
            return f"{first_line(error)} Try a smaller --batch, or --dtype bfloat16."
    return None


def _is_out_of_memory(error: Exception) -> bool:
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or "can't allocate memory" in str(error)  # torch's words on a CPU


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return shorten(lines[0], _LONGEST, placeholder=" ...") if lines else type(error).__name__


def complain(message: str) -> None:
    """Print an error."""
    console = errors()
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
