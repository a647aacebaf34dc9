"""Emoji of two vendors (Noto: Apache-2.0; Twemoji: CC BY 4.0), 64x64 pixels, read from two npm packages.

The packages `emoji-datasource-google` and `emoji-datasource-twitter` carry pictures and their names. They are
downloaded with `npm pack`, checked against their sha256, and read as archives; nothing is installed.
"""

import hashlib
import io
import json
import random
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

VERSION = "16.0.0"
STYLES = {
    "noto": ("google", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "twemoji": ("twitter", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
}
"""Style word -> vendor and sha256 of its package."""
SUBJECTS = ("face-", "cat-face", "monkey-face", "heart", "geometric", "food-fruit")
"""Beginnings of the subcategories that are asked for by captions."""
HELDOUT = 20
"""Pictures that are never trained on; each is known in the other style."""


@dataclass(frozen=True)
class Emoji:
    """What one picture shows."""

    style: str
    name: str
    subject: str

    @property
    def caption(self) -> str:
        """For example "noto crying face"."""
        return f"{self.style} {self.name}"

    @property
    def learned(self) -> bool:
        """Whether the subject is one that is asked for by captions."""
        return self.subject.startswith(SUBJECTS)


def fetch(cache: Path, style: str) -> Path:
    """Download a vendor's package into `cache` unless it is there; raise `ValueError` when its sha256 differs."""
    vendor, sha256 = STYLES[style]
    cache.mkdir(parents=True, exist_ok=True)
    package = f"emoji-datasource-{vendor}"
    archive = cache / f"{package}-{VERSION}.tgz"
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{VERSION}"],
            cwd=cache,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"{archive} has sha256 {digest}, expected {sha256}; delete it and run again")
    return archive


def load(cache: Path) -> tuple[list[Emoji], Tensor]:
    """Return every picture of both styles on white: what they show, and uint8 [N, 3, 64, 64]."""
    shown, pictures = [], []
    for style in STYLES:
        vendor = STYLES[style][0]
        with tarfile.open(fetch(cache, style)) as archive:
            listed = json.load(archive.extractfile("package/emoji.json"))  # type: ignore[arg-type]
            files = {entry["image"]: Emoji(style, _name(entry), entry["subcategory"]) for entry in listed}
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                if folder == f"package/img/{vendor}/64" and file in files:
                    shown.append(files[file])
                    pictures.append(_on_white(archive.extractfile(member).read()))  # type: ignore[union-attr]
    order = sorted(range(len(shown)), key=lambda index: shown[index].caption)
    return [shown[i] for i in order], torch.from_numpy(np.stack([pictures[i] for i in order])).permute(
        0, 3, 1, 2
    )


def heldout(shown: list[Emoji]) -> set[Emoji]:
    """Return the pictures that are kept from training."""
    styles: dict[str, list[Emoji]] = {}
    for emoji in shown:
        if emoji.learned:
            styles.setdefault(emoji.name, []).append(emoji)
    draw = random.Random(0)
    both = [found for _, found in sorted(styles.items()) if len(found) == len(STYLES)]
    return {draw.choice(found) for found in draw.sample(both, HELDOUT)}


def to_float(pictures: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _name(entry: dict[str, Any]) -> str:
    return " ".join(re.findall(r"[^\s:,]+", (entry["name"] or entry["short_name"]).lower()))


def _on_white(png: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
