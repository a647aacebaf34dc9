"""What the README shows works as it stands, and what it links to exists."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cachesmith.cli import app

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


COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def shell_lines(text: str) -> list[str]:
    """Return every `cachesmith ...` of a document's shell blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?cachesmith ", line)]


SHOWN = [(d, line) for d in DOCUMENTS for line in shell_lines((ROOT / d).read_text(encoding="utf-8"))]
MAKE = [
    ("Makefile", re.sub(r"\$\(\w+\)", "x", line))
    for line in re.findall(
        r"\$\(BIN\)/(cachesmith .+)", (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    )
]
EXAMPLES = [
    (name, example) for name, c in COMMANDS.items() for example in re.findall("cachesmith .+", c.epilog or "")
]


def test_commands_are_shown() -> None:
    assert len([line for document, line in SHOWN if document == "README.md"]) >= 8
    assert len(MAKE) >= 4 and len(EXAMPLES) >= len(COMMANDS)


@pytest.mark.parametrize(("where", "line"), [*SHOWN, *MAKE, *EXAMPLES])
def test_every_command_that_is_shown_is_one(
    where: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its options exist, their values are of the right kind, and nothing that is needed is left out."""
    name, *arguments = shlex.split(line, comments=True)[1:]
    if where == "Makefile":  # variables hold the model, prompts and effort
        arguments = [*arguments[1:], "model", "--prompts", "prompts"]
        arguments = [argument for argument in arguments if argument != "x"]
    if any(argument.startswith("-") for argument in arguments[:1]) and "--version" in arguments:
        return
    monkeypatch.chdir(tmp_path)
    with COMMANDS[name].make_context(name, arguments) as context:
        assert context.params


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_files_of_the_examples_in_help_exist(name: str, example: str) -> None:
    for word in shlex.split(example):
        if word.startswith("examples/"):
            assert (ROOT / word).exists(), f"{name} --help shows {word}"
