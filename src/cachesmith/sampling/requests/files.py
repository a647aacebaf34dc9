"""Files that a request names: pictures, videos, arrays and tensors. Nothing in them is executed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cachesmith.policies import PolicyError

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")
TENSORS = (".npy", ".safetensors")
_REFUSED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npz")
"""Formats that may run code when they are read, or hold several arrays without saying which is meant."""


@dataclass(frozen=True)
class File:
    """A file in place of a value; `name`: of a tensor in it. It is read anew for every call, and kept nowhere."""

    path: Path
    name: str

    @property
    def is_tensor(self) -> bool:
        """Whether it holds an array or a tensor, which may be joined with those of other requests."""
        return self.path.suffix.lower() in TENSORS

    def load(self) -> Any:
        """Return a PIL picture (RGB), a list of them, or a tensor. Raises `PolicyError`."""
        suffix = self.path.suffix.lower()
        with _refusing(self.path):
            if suffix in _PICTURES:
                return _picture(self.path)
            if suffix in _VIDEOS:
                return _video(self.path)
            if suffix == ".npy":
                return _array(self.path)
            return _tensor(self.path, self.name)

    @cached_property
    def contents(self) -> Any:
        """What it holds, by its contents: equal for a file and for the value that was read from it."""
        from cachesmith.sampling.requests.contents import plain

        return plain(self.load())


def is_file_name(text: str) -> bool:
    """Whether a text ends as the name of a file that can be read, or of one that is refused."""
    return Path(text.partition("#")[0]).suffix.lower() in (*_PICTURES, *_VIDEOS, *TENSORS, *_REFUSED)


def open_file(text: str, folder: Path, argument: str) -> File:
    """Find a file named by a request, and read it once, so that what is wrong with it is said now.

    text: a path relative to `folder`; `#` and a name choose a tensor of a safetensors file, by default the one called
    `argument`, or the only one. Raises `PolicyError`.
    """
    name, _, tensor = text.partition("#")
    path = folder / name
    if path.suffix.lower() in _REFUSED:
        raise PolicyError(
            f"{path.name} is a format that is not read, since it may run code or does not name its arrays; save it "
            "with safetensors.torch.save_file"
        )
    if not os.path.isfile(path):  # noqa: PTH113  # a path may be too long to ask
        raise PolicyError(f"there is no file {path}; paths are relative to the prompts file")
    file = File(path, tensor or argument)
    file.contents  # noqa: B018
    return file


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except PolicyError:
        raise
    except Exception as error:  # decoders raise what they like
        lines = str(error).splitlines() or [type(error).__name__]
        raise PolicyError(f"cannot read {path}: {lines[0][:160]}; give a whole file of its kind") from None


def _picture(path: Path) -> Any:
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def _video(path: Path) -> Any:
    from diffusers.utils import load_video

    if path.suffix.lower() != ".gif" and find_spec("imageio") is None:
        raise PolicyError(
            f"cannot read {path}: imageio is not installed; install it with: pip install 'cachesmith[video]'"
        )
    frames = [frame.convert("RGB") for frame in load_video(str(path))]
    if not frames:
        raise PolicyError(f"{path} holds no frames; give a whole video")
    return frames


def _array(path: Path) -> Any:
    import torch

    return torch.from_numpy(np.load(path, allow_pickle=False))


def _tensor(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = list(file.keys())
        if name not in names and len(names) != 1:
            shown = ", ".join(names[:8]) or "none"
            raise PolicyError(f"{path} holds no tensor {name!r} but {shown}; write {path.name}#NAME")
        return file.get_tensor(name if name in names else names[0])
