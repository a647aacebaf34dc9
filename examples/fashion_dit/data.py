"""Fashion-MNIST (Zalando, MIT licence), read from the raw files inside a PyPI wheel.

The wheel `error-consistency` carries the four original archives. It is downloaded with pip, checked against
its sha256, opened as a zip file and never installed.
"""

import gzip
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WHEEL = "error_consistency-0.3.1-py3-none-any.whl"
SHA256 = "19d26abf1d1c4448c5df3b2f59af5125dbd46172d56966ef6383890ec05a5476"
FOLDER = "error_consistency/deep/FashionMNIST/raw"
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def fetch(cache: Path) -> Path:
    """Download the wheel into `cache` unless it is there; raise `ValueError` when its sha256 differs."""
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--only-binary=:all:", "--python-version", "3.8", "--dest", str(cache)]
        subprocess.run([*pip, *options, "error-consistency==0.3.1"], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheel} has sha256 {digest}, expected {SHA256}; delete it and run again")
    return wheel


def load(cache: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images (uint8, [N, 1, 32, 32], zero-padded from 28) and labels (int64, [N]).

    `split` is "train" (60,000 pictures) or "t10k" (10,000).
    """
    with zipfile.ZipFile(fetch(cache)) as wheel:
        images, labels = (
            _idx(gzip.decompress(wheel.read(f"{FOLDER}/{split}-{kind}-ubyte.gz")))
            for kind in ("images-idx3", "labels-idx1")
        )
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded)[:, None], torch.from_numpy(labels.astype(np.int64))


def to_float(images: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _idx(raw: bytes) -> np.ndarray:
    ndim = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)
