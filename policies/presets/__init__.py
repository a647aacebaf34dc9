"""The published methods as policies bound to no model, by name."""

from cachesmith.policies.presets.presets import PRESETS, parse_preset, preset

__all__ = ["PRESETS", "parse_preset", "preset"]
