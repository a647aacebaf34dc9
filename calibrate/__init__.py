"""Calibration: from a pipeline and a few prompts to a policy."""

from cachesmith.calibrate.calibration import calibrate
from cachesmith.calibrate.config import CalibrationConfig, CalibrationResult

__all__ = ["CalibrationConfig", "CalibrationResult", "calibrate"]
