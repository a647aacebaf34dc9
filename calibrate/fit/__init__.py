"""Coefficients from recordings, in closed form."""
