"""What a calibration holds in memory, told in advance from shapes alone. Nothing is sampled, fitted or moved here."""
