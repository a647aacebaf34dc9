"""The seam between a transformer and whoever watches or replaces its units. Knows no policy."""
