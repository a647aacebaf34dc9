"""Clips as pictures to look at: frames side by side, and all clips playing at once."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def to_image(pixels: Tensor, scale: int) -> Image.Image:
    """Return grey pixels [H, W] in [0, 1] as a picture, enlarged."""
    grey = Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().numpy())
    return grey.resize((grey.width * scale, grey.height * scale), Image.Resampling.NEAREST)


def save_frames(clips: Tensor, path: Path, columns: int = 2, scale: int = 2) -> None:
    """Write clips [N, T, H, W] in [0, 1], the frames of each side by side, `columns` clips a row."""
    rows = clips.transpose(1, 2).flatten(2)
    rows[..., -1] = 1.0
    to_image(torch.cat([torch.cat(list(row), 1) for row in rows.split(columns)]), scale).save(
        path, optimize=True
    )


def save_animation(clips: Tensor, path: Path, columns: int = 10, scale: int = 2) -> None:
    """Write clips [N, T, H, W] in [0, 1] as one GIF, `columns` clips a row, the last frame shown longer."""
    grid = torch.cat([torch.cat(list(row), -1) for row in clips.split(columns)], -2)
    frames = [to_image(frame, scale) for frame in grid]
    pauses = [120] * (len(frames) - 1) + [600]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pauses, loop=0)
