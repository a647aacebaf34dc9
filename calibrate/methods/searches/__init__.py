"""Schedules found by sampling: which steps are computed is moved about, and judged by where the run ends."""
