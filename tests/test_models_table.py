"""The page of models is what the rows and the tests say."""

from pathlib import Path

from tests.models_table import render


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    assert page.read_text(encoding="utf-8") == render(), "python -m tests.models_table > docs/models.md"
