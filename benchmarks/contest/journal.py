"""What has been measured, one JSON object a line, so that an interrupted run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from cachesmith.policies import CachesmithError

Record = dict[str, Any]


class Journal:
    """Records by (kind, name). Raises `CachesmithError` where the file was made under other conditions."""

    def __init__(self, path: Path, conditions: Record):
        self.path = path
        self._found: dict[tuple[str, str], Record] = {}
        plain = json.loads(json.dumps(conditions))
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            self._keep(_read(line))
        before = self.get("conditions", "")
        if before is None:
            self.add("conditions", "", values=plain)
        elif before["values"] != plain:
            raise CachesmithError(
                f"{path} was made under other conditions; delete it or choose another --out"
            )

    def get(self, kind: str, name: str) -> Record | None:
        """Return what was recorded last, or None."""
        return self._found.get((kind, name))

    def add(self, kind: str, name: str, **values: Any) -> Record:
        """Record, at once on disk."""
        record = {"kind": kind, "name": name, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return self._keep(record)

    def _keep(self, record: Record) -> Record:
        if record:
            self._found[record["kind"], record["name"]] = record
        return record


def _read(line: str) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError:  # the line that was being written when the run was interrupted
        return {}
    return record
