"""Sheets of pictures: uncached, every profile, and how they differ."""

from collections.abc import Mapping, Sequence
from math import ceil

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cachesmith.policies import CachesmithError
from cachesmith.sampling.pictures import Samples

Tile = Image.Image

GAP = 4
"""Pixels between pictures."""
_TEXT = 14
"""Height of the labels in pixels."""


def sheet(
    pictures: Mapping[str, Samples], *, columns: int = 8, gain: float = 4.0, smallest: int = 96
) -> Image.Image:
    """Draw one row per entry of `pictures` (see `Pictures.image_samples`), the first being the reference.

    Every other entry gets a second row, its absolute difference from the reference times `gain`. Pictures are
    enlarged without smoothing to at least `smallest` pixels a side.
    """
    named = iter(pictures.items())
    first, reference = next(named)
    rows = {first: reference[:columns]}
    for name, images in named:
        rows[name] = images[:columns]
        pairs = list(zip(images, reference, strict=False))[:columns]
        rows[f"|difference| x {gain:g}\n{name}"] = tuple(gain * (a - b).abs() for a, b in pairs)
    return _labelled({name: [tile(image, smallest) for image in images] for name, images in rows.items()})


def grid(images: Samples, *, smallest: int = 96) -> Image.Image:
    """Draw pictures (see `Pictures.image_samples`) side by side, in a grid as square as possible."""
    tiles = [tile(image, smallest) for image in images]
    columns = ceil(len(tiles) ** 0.5)
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    return _stack(rows)


def tile(image: Tensor, smallest: int = 0) -> Tile:
    """Return one picture [C, H, W] in [0, 1], grey or colour, enlarged by a whole factor to `smallest` pixels.

    Of a video [F, C, H, W] it is the frame in the middle. Raises `CachesmithError` for what is neither.
    """
    if image.ndim == 4:
        image = image[len(image) // 2]
    if image.ndim != 3:
        raise CachesmithError(
            f"samples of shape {tuple(image.shape)} are no pictures; save them as sound or arrays"
        )
    shown = image if image.shape[0] in (1, 3) else image[:3] if image.shape[0] > 3 else image[:1]
    pixels = (torch.nan_to_num(shown.float()).clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    made = Image.fromarray(array)
    factor = max(1, ceil(smallest / min(made.size)))
    return made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST)


def _labelled(rows: Mapping[str, Sequence[Tile]]) -> Image.Image:
    font = ImageFont.load_default(_TEXT)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = ceil(max(pen.multiline_textbbox((0, 0), name, font=font)[2] for name in rows)) + 2 * GAP
    made = _stack(list(rows.values()), margin)
    pen = ImageDraw.Draw(made)
    height = max(tile.height for row in rows.values() for tile in row) + GAP
    for index, name in enumerate(rows):
        middle = GAP + index * height + height // 2
        pen.multiline_text((GAP, middle), name, fill="black", font=font, anchor="lm")
    return made


def _stack(rows: Sequence[Sequence[Tile]], margin: int = 0) -> Image.Image:
    tiles = [picture for row in rows for picture in row]
    width, height = (max(getattr(t, side) for t in tiles) + GAP for side in ("width", "height"))
    columns = max(len(row) for row in rows)
    made = Image.new("RGB", (margin + columns * width + GAP, len(rows) * height + GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            made.paste(picture, (margin + GAP + x * width, GAP + y * height))
    return made
