"""The JSON part of a policy file."""

import json
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cachesmith.policies.base import MAX_DENOISERS, Frozen, Grown, Name, Sha256, Text
from cachesmith.policies.profile import Profile

FORMAT = 1
"""The version this code writes. Readers upgrade older files through `migrations.MIGRATIONS`."""

Action = Literal["error", "warn", "remap", "disable"]
Sigma = Annotated[float, Field(ge=0)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


Scalar = bool | int | float | Annotated[str, Field(max_length=400)] | None
_Extent = Annotated[int, Field(ge=0, le=2**31)]
_Range = tuple[float, float]


class ModelKey(Grown):
    """The network a policy was fitted for.

    `weights_sketch`: two numbers of every parameter (`runtime.models.weights`), the same in every precision.
    `adapter_scales`: the strength of every LoRA. `dtype`, `quantization`, `attention`: what it was computed in.
    """

    LATER = ("weights_sketch", "dtype", "quantization", "attention", "adapter_scales")

    pipeline: Text
    transformer: Text
    config_hash: Sha256
    blocks: Annotated[int, Field(ge=1, le=10_000)]
    weights_hash: Sha256 | None = None
    adapters: tuple[Text, ...] = ()
    weights_sketch: Annotated[tuple[tuple[float, float] | None, ...], Field(max_length=100_000)] | None = None
    dtype: Text | None = None
    quantization: Text | None = None
    attention: Text | None = None
    adapter_scales: dict[Text, float] | None = None


class Size(Grown):
    """The size of a sample: its latents as the transformer is given them, without the batch; its height and width in
    pixels, and its frames, where the pipeline was told them."""

    LATER = ("height", "width", "num_frames")

    latents: tuple[_Extent, ...]
    height: _Extent | None = None
    width: _Extent | None = None
    num_frames: _Extent | None = None

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.latents))
        if self.height is None or self.width is None:
            return f"latents of {shape}"
        frames = "" if self.num_frames is None else f", {self.num_frames} frames"
        return f"{self.height} x {self.width}{frames} (latents of {shape})"


class SamplerKey(Grown):
    """The sampler a policy was fitted for. `sigmas` has one noise level per step, in sampling order.

    `settings`: the scheduler's configuration. `scales`: lowest and highest value of every pipeline argument that is a
    scale of guidance. `sizes`: every size that was sampled.
    """

    LATER = ("settings", "scales", "sizes")

    scheduler: Text
    steps: Annotated[int, Field(ge=1, le=10_000)]
    sigmas: tuple[Sigma, ...]
    guidance: Literal["none", "batched", "sequential"] = "none"
    guidance_range: tuple[float, float] | None = None
    settings: dict[Text, Scalar] | None = None
    scales: dict[Text, _Range] | None = None
    sizes: Annotated[tuple[Size, ...], Field(max_length=1000)] | None = None

    @property
    def every_scale(self) -> dict[str, tuple[float, float]]:
        """`scales`, which older files have of guidance alone."""
        older = {} if self.guidance_range is None else {"guidance_scale": self.guidance_range}
        return older if self.scales is None else self.scales

    @property
    def scales_in_words(self) -> list[str]:
        """Every scale with its value, or its lowest and highest."""
        return [
            f"{name} {low:g}" if low == high else f"{name} {low:g} to {high:g}"
            for name, (low, high) in self.every_scale.items()
        ]

    @property
    def arguments(self) -> dict[str, float]:
        """The pipeline arguments that were the same in all of the calibration: guidance scales and the size."""
        scales = {name: low for name, (low, high) in self.every_scale.items() if low == high}
        (size,) = self.sizes if self.sizes is not None and len(self.sizes) == 1 else (Size(latents=()),)
        size_of = {"height": size.height, "width": size.width, "num_frames": size.num_frames}
        return {**scales, **{name: value for name, value in size_of.items() if value is not None}}


class Mismatch(Grown):
    """What to do when the pipeline at hand differs from the one the policy was fitted for."""

    LATER = ("dtype", "quantization", "attention", "size")

    model: Action = "error"
    config: Action = "error"
    weights: Action = "warn"
    adapters: Action = "warn"
    scheduler: Action = "warn"
    sigmas: Action = "remap"
    steps: Action = "remap"
    few_steps: Action = "disable"
    guidance: Action = "warn"
    dtype: Action = "warn"
    quantization: Action = "warn"
    attention: Action = "warn"
    size: Action = "warn"


class UnitFit(Frozen):
    """Goodness of fit of one lane (a stream of a unit): scale s over prompts and steps."""

    lane: Text
    scale: Annotated[float, Field(ge=0)]
    spread: Annotated[float, Field(ge=0)]
    r2: float


class TrialRecord(Frozen):
    """One trial on the front of the search: PSNR in dB on some fitting samples, and full computations."""

    number: Annotated[int, Field(ge=0)]
    psnr: float
    nfc: Annotated[float, Field(ge=0)]
    source: Text


class Calibration(Frozen):
    """Where a policy comes from."""

    fitting_prompts: Sha256
    heldout_prompts: Sha256
    fitting_size: Annotated[int, Field(ge=1)]
    heldout_size: Annotated[int, Field(ge=1)]
    fitting_seeds: tuple[_Seed, ...]
    heldout_seeds: tuple[_Seed, ...]
    dtype: Text
    versions: dict[Text, Text]
    study: Text
    fitted: tuple[Text, ...] = ()
    fits: tuple[UnitFit, ...] = ()
    front: tuple[TrialRecord, ...] = ()

    @model_validator(mode="after")
    def _seeded(self) -> "Calibration":
        if not self.fitting_seeds and not self.heldout_seeds:
            raise ValueError("at least one of fitting_seeds and heldout_seeds must name a seed")
        return self

    @property
    def unseen_seed(self) -> int:
        """The first seed above all that were used."""
        return 1 + max((*self.fitting_seeds, *self.heldout_seeds))


class Document(Grown):
    """The JSON part of a policy file.

    `model` is the pipeline's main denoiser, `transformer`; `models` are its further ones by name, such as
    `transformer_2`.
    """

    LATER = ("models",)

    format: Literal[1] = 1
    name: Name
    profiles: dict[Name, Profile] = Field(min_length=1, max_length=64)
    model: ModelKey | None = None
    models: dict[Name, ModelKey] = Field(default_factory=dict, max_length=MAX_DENOISERS)
    sampler: SamplerKey | None = None
    mismatch: Mismatch = Mismatch()
    calibration: Calibration | None = None

    @field_validator("profiles")
    @classmethod
    def _dearest_first(cls, profiles: dict[str, Profile]) -> dict[str, Profile]:
        """Most full computations first, those without a count last: wherever they are listed, it is a front."""
        return dict(sorted(profiles.items(), key=lambda item: -(item[1].nfc or 0.0)))


def canonical(document: Document) -> bytes:
    """The document as JSON with sorted keys: equal documents give equal bytes."""
    return json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
