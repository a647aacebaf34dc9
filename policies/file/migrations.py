"""How documents of older formats become current: one pure function per version."""

from collections.abc import Callable, Mapping
from typing import Any

from cachesmith.policies.document import FORMAT
from cachesmith.policies.errors import PolicyError

Raw = dict[str, Any]
"""A document as parsed from JSON."""

Migration = Callable[[Raw], Raw]

MIGRATIONS: dict[int, Migration] = {}
"""`MIGRATIONS[n]` turns a document of format n into one of format n + 1."""


def upgrade(raw: Raw, migrations: Mapping[int, Migration] = MIGRATIONS, current: int = FORMAT) -> Raw:
    """Return the document in format `current`; an unknown format is an error."""
    version = format_of(raw, migrations, current)
    for step in range(version, current):
        raw = {**migrations[step](raw), "format": step + 1}
    return raw


def format_of(raw: Raw, migrations: Mapping[int, Migration] = MIGRATIONS, current: int = FORMAT) -> int:
    """Return the document's format, or raise `PolicyError` if this code cannot read it."""
    found, known = raw.get("format"), [*sorted(migrations), current]
    if type(found) is not int or found not in known:
        raise PolicyError(
            f"the policy file has format {str(found)[:40]!r}, "
            f"this cachesmith reads {', '.join(map(str, known))}; "
            "install a newer cachesmith or calibrate again"
        )
    return found
