"""What a pipeline drew: pictures, videos or sound, and the latents they were decoded from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cachesmith.policies import CachesmithError

Samples = Tensor | tuple[Tensor, ...]
"""One entry a sample: a tensor [N, ...] where all have one shape, else as many tensors."""

Media = Literal["image", "video", "audio", "latent"]
"""Of a sample: image [C, H, W] and video [F, C, H, W] in [0, 1], audio [C, T] in [-1, 1], latent [...]."""

USUAL_RATE = 44_100
"""Sound samples a second, where a pipeline says nothing of it."""

_RATES = ("sampling_rate", "sample_rate")

_AXES: dict[str, tuple[str, ...]] = {
    "image": ("channels", "height", "width"),
    "video": ("num_frames", "channels", "height", "width"),
}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Samples in the order of their requests, on the host, float32.

    image_samples: what was drawn; latent_samples: what the decoder was given, or the samples themselves where nothing
    is decoded; path_samples: [waypoints, ...] each, where a run was followed; audio_samples: the sound of a video.
    Sizes may differ: `images`, `latents` and `path` are there where they do not, and indexing picks some.
    """

    image_samples: Samples
    latent_samples: Samples
    media: Media = "image"
    path_samples: Samples | None = None
    audio_samples: Samples | None = None

    @property
    def images(self) -> Tensor:
        """[N, C, H, W], or as `Media` says. Raises `CachesmithError` where sizes differ."""
        return _one_shape(self.image_samples)

    @property
    def latents(self) -> Tensor:
        """[N, ...]. Raises `CachesmithError` where sizes differ."""
        return _one_shape(self.latent_samples)

    @property
    def path(self) -> Tensor:
        """[N, waypoints, ...]. Raises `CachesmithError` where sizes differ, or no run was followed."""
        if self.path_samples is None:
            raise CachesmithError("this run was not followed; sample with Renderer.reference")
        return _one_shape(self.path_samples)

    @property
    def size(self) -> dict[str, int]:
        """Height and width in pixels, and the number of frames, under the names of the pipelines' arguments."""
        axes, (first, *_) = _AXES.get(self.media, ()), self.image_samples
        return {} if first.ndim != len(axes) else dict(zip(axes, first.shape, strict=True))

    def __len__(self) -> int:
        return len(self.image_samples)

    def __getitem__(self, places: slice | Sequence[int]) -> "Pictures":
        chosen = range(len(self))[places] if isinstance(places, slice) else places
        picked: dict[str, Any] = {name: _picked(getattr(self, name), chosen) for name in _FIELDS}
        return Pictures(**picked, media=self.media)

    def not_finite(self) -> str:
        """Say what holds values that are not finite: `latents`, `pictures`, or nothing."""
        for name, samples in (("latents", self.latent_samples), ("pictures", self.image_samples)):
            if not all(bool(sample.isfinite().all()) for sample in samples):
                return name
        return ""


_FIELDS = ("image_samples", "latent_samples", "path_samples", "audio_samples")


def joined_pictures(parts: Sequence[Pictures], places: Sequence[int]) -> Pictures:
    """Put the samples of several calls in order: the n-th of all is number `places[n]`."""
    fields: dict[str, Any] = {name: _ordered([getattr(p, name) for p in parts], places) for name in _FIELDS}
    return Pictures(**fields, media=parts[0].media)


def pictures_of(result: Any, latents: Sequence[Tensor], output_type: str, path: Tensor | None) -> Pictures:
    """Read what a pipeline call returned. latents: what its decoder was given, in as many calls as it took."""
    field, media = _field(result)
    samples = as_tensor(getattr(result, field), media != "audio").float().cpu()
    audio = None
    if media == "video" and getattr(result, "audio", None) is not None:
        audio = as_tensor(result.audio, drawn=False).float().cpu()
    if output_type == "latent":
        media = "latent"
    given = getattr(result, "latents", None)
    decoded = torch.cat(list(latents)) if latents else samples if given is None else given
    # decoders that take some frames at a time are given the frames of all samples in a row
    rows = len(samples)
    whole = decoded if len(decoded) == rows or len(decoded) % rows else decoded.unflatten(0, (rows, -1))
    return Pictures(samples, whole.float().cpu(), media, path, audio)


def sampling_rate(pipe: Any) -> int:
    """Return sound samples a second: as the pipeline or its decoder says, in one of two spellings; else the usual."""
    vae = getattr(pipe, "vae", None)
    # not by the attribute of the module: that is its configuration's as well, with a warning
    said = [vars(pipe)] if vae is None else [vars(pipe), vars(vae), getattr(vae, "config", {})]
    return int(next((each[name] for each in said for name in _RATES if name in each), USUAL_RATE))


def as_tensor(value: Any, drawn: bool = True) -> Tensor:
    """Return samples as a tensor. drawn: arrays have their channels last, as PIL pictures do; sound has not."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value)
        return tensor.movedim(-1, -3) if drawn and tensor.ndim > 2 else tensor
    if isinstance(value, list | tuple) and value:
        return torch.stack([as_tensor(item, drawn) for item in value])
    array = np.asarray(value)
    if array.dtype != np.uint8:
        raise CachesmithError(
            f"the pipeline gave a {type(value).__name__}; give samples as tensors or pictures"
        )
    tensor = torch.from_numpy(array.copy()).float() / 255
    return tensor[None] if tensor.ndim == 2 else tensor.movedim(-1, 0)


def _field(result: Any) -> tuple[str, Media]:
    fields: dict[str, Media] = {
        "images": "image",
        "frames": "video",
        "audios": "audio",
        "image": "image",  # Kandinsky's
    }
    for field, media in fields.items():
        if getattr(result, field, None) is not None:
            return field, media
    raise CachesmithError(
        f"a {type(result).__name__} holds none of images, frames and audios; use a pipeline or sampling function that "
        "returns one of them"
    )


def _one_shape(samples: Samples) -> Tensor:
    if isinstance(samples, Tensor):
        return samples
    shapes = sorted({tuple(sample.shape) for sample in samples})
    raise CachesmithError(f"samples of shapes {shapes} are no one tensor; take those of one size at a time")


def _picked(samples: Samples | None, places: Sequence[int]) -> Samples | None:
    if samples is None:
        return None
    if isinstance(samples, Tensor):
        # a view where the places allow one
        whole = isinstance(places, range) and places.step == 1
        return samples[slice(places[0], places[-1] + 1) if whole and len(places) else list(places)]
    return _together([samples[place] for place in places])


def _ordered(parts: Sequence[Samples | None], places: Sequence[int]) -> Samples | None:
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    if list(places) == sorted(places) and all(isinstance(part, Tensor) for part in present):
        tensors = [part for part in present if isinstance(part, Tensor)]
        if len({part.shape[1:] for part in tensors}) == 1:
            return torch.cat(tensors)
    samples = [sample for part in present for sample in part]
    return _together(
        [sample for _, sample in sorted(zip(places, samples, strict=True), key=lambda item: item[0])]
    )


def _together(samples: list[Tensor]) -> Samples:
    one = len({sample.shape for sample in samples}) == 1
    return torch.stack(samples) if one else tuple(samples)
