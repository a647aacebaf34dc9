"""What a calibration tells: text, pictures and figures."""
