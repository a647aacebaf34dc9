"""Randomised use of sessions: every picture is compared, to the bit, with the one of a fresh pipeline."""
