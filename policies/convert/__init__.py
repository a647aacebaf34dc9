"""Policies from, and for, the settings of other caching tools. Needs no torch and none of those tools."""

from cachesmith.policies.convert.common import Converted
from cachesmith.policies.convert.formats import SOURCES, TARGETS, export_profile, import_settings
from cachesmith.policies.convert.text import MAX_CHARACTERS, read_settings, write_settings

__all__ = [
    "MAX_CHARACTERS",
    "SOURCES",
    "TARGETS",
    "Converted",
    "export_profile",
    "import_settings",
    "read_settings",
    "write_settings",
]
