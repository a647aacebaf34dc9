"""From a pipeline and a prompt set to a policy file: `calibrate(pipe, prompts, config)`."""

from cachesmith.calibrate.calibration import calibrate
from cachesmith.calibrate.config import CalibrationConfig, CalibrationResult

__all__ = ["CalibrationConfig", "CalibrationResult", "calibrate"]
