"""Calibration: from a pipeline and a few prompts to a policy.

`calibrate` needs the extra `[calibrate]`; what sampling shares with it (requests, rendering, sheets) does not, so the
three names below are looked up when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachesmith.calibrate.calibration import calibrate
    from cachesmith.calibrate.config import CalibrationConfig, CalibrationResult

__all__ = ["CalibrationConfig", "CalibrationResult", "calibrate"]

_HOMES = {"calibrate": "calibration", "CalibrationConfig": "config", "CalibrationResult": "config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
