"""Who calls the transformer, and with which arguments: read off the Python stack, so that nothing has to be undone.

A pipeline's `__call__` cannot be wrapped on one instance, and the arguments that matter are those after the pipeline
filled in its defaults.
"""

import sys
from types import FrameType
from typing import Any

from torch import nn


def calling_frame() -> FrameType | None:
    """The innermost call of a pipeline that is in progress on this thread: of an object with a `scheduler`."""
    frame = sys._getframe(1)
    while (above := frame.f_back) is not None:
        frame = above
        code = frame.f_code
        likely = code.co_name == "__call__" or "scheduler" in code.co_names
        if likely and code.co_argcount and code.co_varnames[0] == "self" and _samples(frame.f_locals["self"]):
            return frame
    return None


def is_sampling(pipe: Any) -> bool:
    """Whether a call of `pipe` is in progress, on any thread."""
    return any(_holds(frame, "__call__", pipe) for frame in sys._current_frames().values())


def in_call(module: nn.Module, thread: int) -> bool:
    """Whether `thread` is in a call of `module`."""
    return _holds(sys._current_frames().get(thread), "_call_impl", module)


def _holds(frame: FrameType | None, method: str, owner: Any) -> bool:
    """Whether a call of this method of `owner` is in progress, in `frame` or above it."""
    while frame is not None:
        if frame.f_code.co_name == method and frame.f_locals.get("self") is owner:
            return True
        frame = frame.f_back
    return False


def numbers(frame: FrameType) -> dict[str, float]:
    """The numbers among the arguments of the call in `frame`, as the function uses them by now, and its guiders'."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found = _of_guiders(values["self"])
    for name in names:
        value: Any = values.get(name)
        found |= {f"{name}.{k}": v for k, v in value.items() if _number(v)} if isinstance(value, dict) else {}
        if _number(value):
            found[name] = value
    return found


def _of_guiders(owner: Any) -> dict[str, float]:
    """Strengths and beginning and end of the guidance of pipelines that have it as a part: `guider_guidance_scale`,
    `guider_guidance_start`."""
    found = {}
    for name, part in vars(owner).items():
        if {"num_conditions", "prepare_inputs"} <= {*dir(type(part))}:
            for key, given in part.config.items():
                value = vars(part).get(key, vars(part).get(f"_{key}", given))
                if _number(value):
                    found[f"{name}_{key}" if "guidance" in key else f"{name}_guidance_{key}"] = value
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _samples(owner: Any) -> bool:
    scheduler = getattr(owner, "__dict__", {}).get("scheduler")
    return not isinstance(owner, nn.Module) and hasattr(scheduler, "set_timesteps")
