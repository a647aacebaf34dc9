"""Rows of known classes, found by calling tiny models of them: `rows.json`, which `cachesmith adapters` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachesmith.runtime.models.adapter import Adapter, BlockList, IdleList
from cachesmith.runtime.models.spans import SPANS

ROWS = Path(__file__).with_name("rows.json")


def read_rows(path: Path = ROWS) -> dict[str, Adapter]:
    """Return the adapter of every class in the file, with the spans that are written by hand."""
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: _adapter(name, row) for name, row in rows["classes"].items()}


def rows_text(adapters: Mapping[str, Adapter], diffusers: str) -> str:
    """The file's text: one line a fact, so that a new diffusers release shows as a diff."""
    classes = {name: _row(adapter) for name, adapter in sorted(adapters.items())}
    return json.dumps({"diffusers": diffusers, "classes": classes}, indent=1) + "\n"


def _row(adapter: Adapter) -> dict[str, Any]:
    row: dict[str, Any] = {
        "lists": {entry.path: " ".join(entry.streams) for entry in adapter.lists},
        "live": " ".join(adapter.live),
        "timestep": adapter.timestep,
    }
    if adapter.idle:
        row["idle"] = {i.path: {"streams": " ".join(i.streams), "kept": i.kept} for i in adapter.idle}
    row |= {name: " ".join(getattr(adapter, name)) for name in ("empty", "outer") if getattr(adapter, name)}
    row |= {name: True for name in ("skips", "works") if getattr(adapter, name)}
    return row


def _adapter(name: str, row: Mapping[str, Any]) -> Adapter:
    spans = SPANS.get(name, {})
    idle = row.get("idle", {}).items()
    return Adapter(
        lists=tuple(BlockList(p, tuple(s.split()), spans.get(p, ())) for p, s in row["lists"].items()),
        live=tuple(row["live"].split()),
        timestep=row["timestep"],
        idle=tuple(IdleList(p, tuple(i["streams"].split()), i["kept"]) for p, i in idle),
        skips=row.get("skips", False),
        works=row.get("works", False),
        empty=tuple(row.get("empty", "").split()),
        outer=tuple(row.get("outer", "").split()),
    )
