"""Finds the blocks of a transformer that has no row, from one call, and proves them. Knows no model by name."""
