"""What run, bench, validate, export and calibrate share: requests, rendering, measuring. No calibration extras."""
