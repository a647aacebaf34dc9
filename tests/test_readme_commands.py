"""Every command of the README is run, in its order, on a small FLUX; what is added makes it quick."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel

from tests.test_readme import README, ROOT, shell_lines

pytestmark = pytest.mark.slow
LARGE = "black-forest-labs/FLUX.1-dev"
SMALL = "--height 32 --width 32"
QUICK = {
    "calibrate": f"{SMALL} --num-inference-steps 14 --budget 10 --heldout 2 --batch 2 --speedup 7 --no-baselines",
    "run": SMALL,
    "bench": f"{SMALL} --samples 2 --repeats 1",
    "validate": f"{SMALL} --samples 2",
    "export": f"{SMALL} --target onnxruntime",
    "push": "--dry-run pushed",
}
"""Command -> what is added to it; the last value of an option counts. The Hub is not reached."""

LEFT_OUT = "--target tensorrt"
"""What needs an NVIDIA GPU."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the model and the prompts that the README speaks of."""
    here = tmp_path_factory.mktemp("readme")
    pipe: Any = DiffusionPipeline.from_pretrained(ROOT / "examples/fashion_flux/model", dtype=torch.float32)
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 1}
    pipe.transformer = FluxTransformer2DModel.from_config(config)
    pipe.save_pretrained(here / "MODEL")
    for name in ("prompts.txt", "new.txt"):
        (here / name).write_text("\n".join(f"{name}, number {i}" for i in range(20)), encoding="utf-8")
    return here


def commands() -> list[str]:
    return [line for line in shell_lines(README) if LEFT_OUT not in line and "COMMAND" not in line]


DRIVER = """
import json, sys
from typer.testing import CliRunner
from cachesmith.cli import app
for line, arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments)
    # a random network is not held to the README's quality: 3 says that it was measured, and is below
    if result.exit_code not in ((0, 3) if arguments[0] == "validate" else (0,)):
        sys.exit(f"{line}: {result.exit_code}, {result.output}, {result.exception!r}")
"""
"""All in one process, which has no terminal and no test runner around it."""


def with_what_makes_it_quick(line: str) -> list[str]:
    arguments = shlex.split(line.replace(LARGE, "MODEL").replace("--device cuda", ""), comments=True)[1:]
    if "--dry-run" in arguments:
        return arguments
    return arguments + shlex.split(QUICK.get(arguments[0], ""))


def test_every_command_of_the_readme_runs(folder: Path) -> None:
    listed = [(line, with_what_makes_it_quick(line)) for line in commands()]
    names = [arguments[0] for _, arguments in listed]
    assert names.count("run") == 3
    assert {"calibrate", "inspect", "bench", "validate", "export", "push"} <= {*names}
    found = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(listed), cwd=folder, capture_output=True, text=True,
        timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert (folder / "report" / "report.html").is_file() and (folder / "bundle" / "manifest.json").is_file()
    assert all((folder / f"{name}.png").is_file() for name in ("bicycle", "engines", "flux"))
