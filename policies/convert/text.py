"""Foreign settings as text: JSON, or YAML without aliases, read as plain data."""

import json
from typing import Any

import yaml

from cachesmith.policies.errors import PolicyError

MAX_CHARACTERS = 2**20
"""Longest settings that are read: a per-layer schedule of a large model has some ten thousand."""


def read_settings(text: str) -> Any:
    """Return the plain data in a JSON or YAML text. Raises `PolicyError`; nothing is executed."""
    if len(text) > MAX_CHARACTERS:
        raise PolicyError(
            f"the settings have {len(text):,} characters, the limit is {MAX_CHARACTERS:,}; shorten them"
        )
    bare = text.strip()
    if bare and set(bare) <= {"0", "1"}:
        # a mask: YAML would read 0101 as an octal number
        return bare
    try:
        return json.loads(text)
    except ValueError:
        pass
    except RecursionError:
        raise PolicyError("the settings are nested too deeply; flatten them") from None
    try:
        # a few aliases can stand for gigabytes
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise PolicyError("the settings use a YAML alias; write the value out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160] or "nested too deeply"
        raise PolicyError(f"cannot read the settings as JSON or YAML: {reason}; correct them") from None


def write_settings(values: Any, form: str, notes: tuple[str, ...] = ()) -> str:
    """Return plain data as `json`, as `yaml` with the notes as comments, or a `text` as it is."""
    if form == "text":
        return f"{values}\n"
    if form == "json":
        return json.dumps(values, indent=2) + "\n"
    comments = "".join(f"# {note}\n" for note in notes)
    return comments + str(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100))
