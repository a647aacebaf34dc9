"""Outputs from past outputs: histories, weights and tensor functions. Knows no transformer and no gate."""
