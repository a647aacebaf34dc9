"""Samples as browsers show them, inside the page: pictures, videos and sound as data URIs."""

import base64
import io
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from cachesmith.sampling.pictures import USUAL_RATE

LOSSLESS = 256
"""Pixels on a side up to which pictures are kept to the bit, as PNG."""

_LARGEST = 1024
"""Pixels on a side of what is shown; larger pictures are scaled down."""

VISIBLE = 0.995
"""Share of a difference's values that the gain may not drive out of range."""

GREATEST_GAIN = 256.0

_FRAMES = 8
"""A second of a video: slow enough to see what flickers."""


@dataclass(frozen=True)
class EmbeddedMedia:
    """An encoded sample. `small` ones are enlarged without smoothing; width over height is `ratio`."""

    kind: Literal["picture", "video", "audio"]
    mime: str
    data: bytes
    ratio: float = 1.0
    small: bool = False

    @property
    def uri(self) -> str:
        """The sample as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


def encode_media(sample: Tensor, rate: int = USUAL_RATE) -> EmbeddedMedia:
    """Encode a picture [C, H, W] or a video [F, C, H, W] in [0, 1], or sound [channels, time] in [-1, 1].

    rate: samples a second of sound. Raises `ValueError` for any other shape.
    """
    match sample.ndim:
        case 2:
            return _sound(sample, rate)
        case 3:
            return picture(_image(sample))
        case 4:
            return _video(sample)
    raise ValueError(f"a sample of shape {tuple(sample.shape)} is no picture, video or sound")


def visible_difference(uncached: Tensor, cached: Tensor) -> tuple[Tensor, float]:
    """Return how far two samples of one shape are apart, times a gain that makes it seen, and that gain.

    Of pictures and videos |a - b|, of sound b - a. The gain is a power of two, at least 1: with it, all but the largest
    half per cent of the values stay in range.
    """
    apart = torch.nan_to_num(cached.float() - uncached.float())
    apart = apart if apart.ndim == 2 else apart.abs()
    # every 1,000th value of a long video says as much as all of them
    values = apart.abs().flatten()
    values = values[:: max(1, len(values) // 1_000_000)]
    top = float(values.sort().values[int(VISIBLE * (len(values) - 1))])
    gain = 1.0
    while gain < GREATEST_GAIN and 2 * gain * top <= 1:
        gain *= 2
    return (gain * apart).clamp(-1, 1), gain


def picture(image: Image.Image) -> EmbeddedMedia:
    """Encode a picture: small ones as PNG, large ones as WebP."""
    small = max(image.size) <= LOSSLESS
    ratio = image.width / image.height
    image.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
        return EmbeddedMedia("picture", "image/png", buffer.getvalue(), ratio, small=True)
    image.save(buffer, "WEBP", quality=90)
    return EmbeddedMedia("picture", "image/webp", buffer.getvalue(), ratio)


def _image(sample: Tensor) -> Image.Image:
    from cachesmith.sampling.sheet import tile

    return tile(sample)


def _video(frames: Tensor) -> EmbeddedMedia:
    """H.264, which every browser plays; its frames have even sides."""
    from diffusers.utils import export_to_video

    height, width = frames.shape[-2:]
    factor = max(1, -(-96 // min(height, width)))
    images = [_image(frame) for frame in frames]
    size = (2 * (factor * width // 2), 2 * (factor * height // 2))
    shown = [image.resize(size, Image.Resampling.NEAREST) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        export_to_video(shown, str(path), fps=_FRAMES, macro_block_size=2)
        return EmbeddedMedia("video", "video/mp4", path.read_bytes(), width / height)


def _sound(samples: Tensor, rate: int) -> EmbeddedMedia:
    buffer = io.BytesIO()
    values = (torch.nan_to_num(samples.float()).clamp(-1, 1) * 32_767).round().to(torch.int16)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(values.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.T.contiguous().cpu().numpy().astype("<i2").tobytes())
    return EmbeddedMedia("audio", "audio/wav", buffer.getvalue())
