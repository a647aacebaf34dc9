"""The timing cache of earlier builds, without TensorRT."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cachesmith.export.build_engine import save_timings


def test_timings_are_kept_or_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "timings"
    save_timings(path, SimpleNamespace(serialize=lambda: bytearray(b"first")))
    assert path.read_bytes() == b"first"

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_timings(path, SimpleNamespace(serialize=lambda: b"second"))
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]
