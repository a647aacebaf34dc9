import json
from pathlib import Path

import pytest
from tests.commands.shop import Cli, fails, succeeds

from cachesmith.runtime import ADAPTERS
from cachesmith.runtime.models import rows as rows_module
from cachesmith.runtime.models.rows import ROWS
from cachesmith.zoo import VARIANTS, ZOO


def test_the_list(cli: Cli) -> None:
    shown = succeeds(cli("adapters"))
    assert "FluxTransformer2DModel" in shown and "HunyuanDiT2DModel" in shown
    known = json.loads(succeeds(cli("adapters", "--json")))
    assert set(known) == set(ADAPTERS) and known["FluxTransformer2DModel"] == ["stack", "segment", "module"]
    assert known["HunyuanDiT2DModel"] == ["stack"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes, one of which has no row."""
    names = ("DiTTransformer2DModel", "WanTransformer3DModel", "Flux3Transformer2DModel")
    monkeypatch.setattr("cachesmith.zoo.ZOO", {name: ZOO[name] for name in names})
    monkeypatch.setattr("cachesmith.zoo.VARIANTS", VARIANTS)


@pytest.mark.usefixtures("few")
def test_what_differs_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("adapters", "--check")
    fails(result, "FluxTransformer2DModel", "to see the difference, write the rows to a file with --write")
    assert "WanTransformer3DModel" not in result.stderr
    rows = tmp_path / "rows.json"
    result = cli("adapters", "--check", "--write", rows)
    assert (
        "saved" in succeeds(result) and "Flux3Transformer2DModel: its blocks depend on how" in result.stderr
    )
    written = json.loads(rows.read_text())["classes"]
    assert (
        written == {name: json.loads(ROWS.read_text())["classes"][name] for name in written}
        and len(written) == 2
    )
    monkeypatch.setattr(rows_module, "ROWS", rows)
    assert "2 classes are as known" in succeeds(cli("adapters", "--check"))
    found = json.loads(succeeds(cli("adapters", "--check", "--json")))
    assert found["as_known"] and set(found["classes"]) == set(written)
    assert [*found["without"]] == ["Flux3Transformer2DModel"]


def test_writing_is_for_checking(cli: Cli) -> None:
    fails(cli("adapters", "--write", "rows.json"), "give both")
