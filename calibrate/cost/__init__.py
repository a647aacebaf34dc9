"""What a calibration costs: told in advance, counted as it goes, shown while it runs. No tensors."""
