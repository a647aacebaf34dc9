"""What was sampled, as files: pictures, videos, sounds."""

import wave
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cachesmith.commands.failure import need
from cachesmith.commands.output import write_picture
from cachesmith.commands.shared.destination import check_file, check_picture_format
from cachesmith.files import replacing
from cachesmith.policies import CachesmithError

if TYPE_CHECKING:
    from torch import Tensor

    from cachesmith.sampling.pictures import Samples

Kind = Literal["picture", "video", "sound"]

ENDINGS: dict[str, Kind] = {".mp4": "video", ".wav": "sound"}
"""Of file names; all others are pictures'."""

FPS = 16
"""Frames a second of a video, where the user does not say."""


def file_names(out: Path, count: int, separate: bool) -> list[Path]:
    """Return the files that `count` samples go to: one, or a numbered one for each."""
    if count == 1 or (kind(out) == "picture" and not separate):
        return [out]
    return [out.with_stem(f"{out.stem}-{index}") for index in range(count)]


def check_files(out: Path, count: int, separate: bool, force: bool) -> None:
    """Raise `CachesmithError` before any work is done if the samples cannot be saved."""
    if kind(out) == "video":
        need("imageio", "imageio_ffmpeg")
    if kind(out) == "picture":
        check_picture_format(out)
    for path in file_names(out, count, separate):
        check_file(path, "--out", force)


def check_kind(out: Path, parameters: Iterable[str]) -> None:
    """Raise `CachesmithError` where a pipeline that is called with these makes something that is no such file."""
    samples = _made(parameters)
    if samples != kind(out):
        ending = next((e for e, k in ENDINGS.items() if k == samples), ".png")
        raise CachesmithError(f"the pipeline makes {samples}s, not {kind(out)}s; end --out in {ending}")


def save_samples(samples: "Samples", files: list[Path], fps: int, rate: int) -> None:
    """Write pictures [C, H, W] and videos [F, C, H, W], in [0, 1], or sounds [channels, T] in [-1, 1].

    Several pictures go into one file as a grid. `fps` is for videos, `rate` (samples a second) for sounds.
    """
    from cachesmith.sampling.sheet import grid, tile

    match kind(files[0]):
        case "video":
            for path, video in zip(files, samples, strict=True):
                write_video(path, video, fps)
        case "sound":
            for path, sound in zip(files, samples, strict=True):
                write_sound(path, sound, rate)
        case "picture" if len(files) == 1 < len(samples):
            write_picture(files[0], grid(samples))
        case "picture":
            for path, image in zip(files, samples, strict=True):
                write_picture(path, tile(image))


def write_video(path: Path, frames: "Tensor", fps: int) -> None:
    """Save frames [F, C, H, W] in [0, 1] as H.264, whole or not at all. Odd sizes grow by a pixel."""
    from diffusers.utils import export_to_video

    path.parent.mkdir(parents=True, exist_ok=True)
    colour = frames.float().clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    with replacing(path) as part:
        export_to_video(list(colour), str(part), fps=fps, macro_block_size=2)


def write_sound(path: Path, samples: "Tensor", rate: int) -> None:
    """Save samples [channels, T] in [-1, 1] as 16-bit PCM, whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = (samples.float().clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    with replacing(path) as part, wave.open(str(part), "wb") as file:
        file.setnchannels(len(numbers))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(numbers.T.contiguous().numpy().astype("<i2").tobytes())


def kind(out: Path) -> Kind:
    """Return what a file of this name holds."""
    return ENDINGS.get(out.suffix.lower(), "picture")


def _made(parameters: Iterable[str]) -> Kind:
    names = set(parameters)
    if names & {"num_frames", "video_length"}:
        return "video"
    lengths = {"audio_end_in_s", "audio_length_in_s", "audio_duration", "audio_duration_s", "duration"}
    return "sound" if names & lengths else "picture"
