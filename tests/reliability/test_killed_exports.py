"""An export that is killed, interrupted or out of disk is resumed to the same bundle; one graph is lost at most."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_exports.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.parametrize(
    ("count", "how"),
    [(8, ""), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((400, ""), (32, "real")))],
)
def test_exports_that_end_early(count: int, how: str) -> None:
    path = os.pathsep.join((str(ROOT), *sys.path))
    done = subprocess.run(
        [sys.executable, SCRIPT, str(count), str(count), how],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])["counts"]
    assert sum(n for said, n in counts.items() if ":" in said) == count
    assert counts["graphs made again"] <= count
