"""The GPU benchmark's exit status, and what it refuses; its figures take a GPU."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_engines as gpu


@pytest.mark.parametrize(("failed", "code"), [(True, 1), (False, None)])
def test_a_row_that_should_run_and_fails(
    failed: bool, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, Any] = {"model": "dit", "engine": "torch", "error": "no memory", "failed": failed}
    monkeypatch.setattr(sys, "argv", ["gpu_engines.py", "--device", "cpu", "--tiny"])
    monkeypatch.setattr(gpu, "rows", lambda _: iter([row]))
    if code is None:
        gpu.main()
    else:
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        assert ended.value.code == code
    assert "no memory" in capsys.readouterr().out


def test_which_rows_may_fail() -> None:
    assert not gpu._may_fail("torch", "cpu") and not gpu._may_fail("onnxruntime", "cpu")
    assert gpu._may_fail("tensorrt", "cpu") and gpu._may_fail("onnxruntime-tensorrt", "cpu")


def test_too_few_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_engines.py", "--steps", "7"])
    with pytest.raises(SystemExit):
        gpu.parse()
    assert "--steps 7 is below 8" in capsys.readouterr().err
