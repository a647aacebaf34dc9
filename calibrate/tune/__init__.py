"""Forecast weights and schedules, improved in closed loop."""
