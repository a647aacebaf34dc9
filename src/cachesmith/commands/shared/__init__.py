"""What every command shares on its way in and out: options, the model, files to write. No command, no calibration."""
