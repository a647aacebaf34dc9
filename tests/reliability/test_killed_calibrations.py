"""A calibration that is killed, interrupted or out of disk is resumed to the same policy, and loses one unit of work.

`python tests/reliability/killed_calibrations.py COUNT SEED` prints the figures of docs/reliability.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_calibrations.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [1, pytest.param(32, marks=pytest.mark.xfail(reason="one ended by SIGINT resumed to another policy id"))],
)
def test_calibrations_that_end_early(count: int) -> None:
    path = os.pathsep.join((str(ROOT), *sys.path))
    done = subprocess.run(
        [sys.executable, SCRIPT, str(count), str(count)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["counts"].values()) == count == len(result["lost"])
    assert max(result["lost"]) <= result["largest unit"]
