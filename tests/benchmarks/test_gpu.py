"""The GPU benchmark runs whole on a CPU with toys; its figures take a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu


@pytest.mark.parametrize("model", gpu.SHAPES)
def test_the_whole_script_on_a_toy(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.md"
    options = [
        "--model",
        model,
        "--device",
        "cpu",
        "--tiny",
        "--dtype",
        "float32",
        "--no-compile",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    gpu.main()
    text = out.read_text()
    assert text.count("| eager |") == 4 and text.count("| Taylor 2,") == 3


def test_the_schedule_is_the_nfc_it_says() -> None:
    assert len(gpu.MASK) == gpu.STEPS and gpu.MASK.count("C") == gpu.NFC
