"""Tensors in the work folder."""

import resource
from pathlib import Path

import pytest
import torch

from cachesmith.calibrate.work_folder import load_tensors, save_tensors
from cachesmith.policies import PolicyError


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7632, before[1]))
    try:
        with pytest.raises(OSError, match=r"fit\.pt"):
            save_tensors(tmp_path / "fit.pt", {"weights": torch.zeros(4000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kept", [0, 100, 1000])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "fit.pt"
    save_tensors(path, {"weights": torch.zeros(400)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PolicyError, match=r"fit\.pt is damaged: delete it"):
        load_tensors(path)
