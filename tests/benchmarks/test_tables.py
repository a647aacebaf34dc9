"""Committed tables and pages are about the committed policies, and have the controls that belong to them."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cachesmith.policies import load

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from contest import controls

ROOT = Path(__file__).parents[2]
POLICIES = {path.parent.name: path for path in ROOT.glob("examples/*/*.policy.safetensors")}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_table_has_even_steps_with_its_policys_ends(name: str) -> None:
    table = json.loads((ROOT / "benchmarks" / name / "peers.json").read_text(encoding="utf-8"))
    policy = load(POLICIES[name])
    assert table["conditions"]["policy"] == policy.id
    course: Any = SimpleNamespace(policy=policy, steps=table["conditions"]["steps"])
    wanted = {control.name for control in controls.entries(course)}
    assert wanted and wanted <= {row["name"] for row in table["rows"]}


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("benchmarks/*/report/report.html")), ids=lambda p: p.parts[-3]
)
def test_a_page_is_of_the_committed_policy(page: Path) -> None:
    """One file that needs nothing else, and tells nobody's folders."""
    text = page.read_text(encoding="utf-8")
    assert f">{load(POLICIES[page.parts[-3]]).id}<" in text
    assert 'src="http' not in text and not re.search(r"(?:--\w+|optuna-dashboard) /\w", text)
