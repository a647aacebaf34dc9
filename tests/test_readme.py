"""What the README shows works as it stands, and what it links to exists."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "full computations instead of 50; no fallbacks" in capsys.readouterr().out


DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "docs/*.md", "benchmarks/**/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / document).parent / target).exists(), (
            f"{document} links to {target}, which does not exist"
        )


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)):
        assert f"\n{target}:" in makefile, f"README names `make {target}`"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
