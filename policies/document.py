"""The JSON part of a policy file."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from cachesmith.policies.base import MAX_GROUPS, Frozen, Name, Sha256, Text
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Gate
from cachesmith.policies.units import Stack, Units

FORMAT = 1
"""The version this code writes. Readers upgrade older files through `migrations.MIGRATIONS`."""

Action = Literal["error", "warn", "remap", "disable"]
Sigma = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


Scalar = bool | int | float | Annotated[str, Field(max_length=400)] | None
Extent = Annotated[int, Field(ge=0, le=2**31)]
Range = tuple[float, float]


class Grown(Frozen):
    """A value that got fields after files were written with it: `LATER` are written only where they say something, so
    that older files keep their bytes and ids."""

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        same = [n for n in self.LATER if getattr(self, n) == type(self).model_fields[n].default]
        return {name: value for name, value in written.items() if name not in same}


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

    latents: tuple[Extent, ...]
    height: Extent | None = None
    width: Extent | None = None
    num_frames: Extent | None = None

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
    scales: dict[Text, Range] | None = None
    sizes: Annotated[tuple[Size, ...], Field(max_length=1000)] | None = None

    @property
    def arguments(self) -> dict[str, float]:
        """The pipeline arguments that were the same in all of the calibration: guidance scales and the size."""
        scales = {name: low for name, (low, high) in (self.scales or {}).items() if low == high}
        if self.scales is None and self.guidance_range is not None:
            low, high = self.guidance_range
            scales = {"guidance_scale": low} if low == high else {}
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


class Summary(Frozen):
    """One metric over all samples: mean, 95 % bootstrap interval of the mean, and the worst sample."""

    mean: float
    low: float
    high: float
    worst: float


class Quality(Frozen):
    """Error against the uncached picture of the same seed, on held-out prompts.

    `psnr_low` and `psnr_high` bound the 95 % bootstrap interval of the mean, in dB. `ssim` is None where the samples
    are no pictures. `metrics`: every metric that was measured, by name; `above_floor`: share of the samples whose PSNR
    is at least `floor` dB; `parts`: PSNR of the samples of each size or guidance, where they differ. Files of before
    those three were kept have none of them, and are written without them again.
    """

    samples: Annotated[int, Field(ge=1)]
    psnr: float
    psnr_low: float
    psnr_high: float
    ssim: float | None = None
    latent_error: Annotated[float, Field(ge=0)]
    lpips: float | None = None
    floor: float | None = None
    above_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    metrics: dict[Name, Summary] = Field(default_factory=dict, max_length=64)
    parts: dict[Text, Summary] = Field(default_factory=dict, max_length=1000)

    @model_validator(mode="after")
    def _once(self) -> "Quality":
        for name in ("psnr", "ssim", "latent_error", "lpips"):
            if name in self.metrics and self.metrics[name].mean != getattr(self, name):
                raise ValueError(f"{name} and metrics.{name}.mean differ")
        if (self.floor is None) != (self.above_floor is None):
            raise ValueError("floor and above_floor belong together; give both or none")
        return self

    def mean(self, name: str) -> float | None:
        """Mean of one metric, None where it was not measured."""
        value: float | None = self.metrics[name].mean if name in self.metrics else getattr(self, name, None)
        return value

    def worst(self, name: str) -> float | None:
        """One metric of the worst sample, None where it was not kept."""
        return self.metrics[name].worst if name in self.metrics else None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what older files do not have, so that they keep their ids."""
        fields: dict[str, Any] = handler(self)
        absent = [name for name in ("floor", "above_floor") if getattr(self, name) is None]
        absent += [name for name in ("metrics", "parts") if not getattr(self, name)]
        return {name: value for name, value in fields.items() if name not in absent}


class Profile(Frozen):
    """One point of the speed/quality front: complete by itself."""

    units: Units = Stack()
    axis: Literal["step", "sigma", "log-snr"] = "step"
    gate: Gate
    forecaster: Forecaster = Forecaster()
    overrides: dict[Name, Forecaster] = Field(default_factory=dict, max_length=MAX_GROUPS)
    nfc: Annotated[float, Field(ge=0)] | None = None
    speedup: Annotated[float, Field(ge=0)] | None = None
    measured_speedup: Annotated[float, Field(ge=0)] | None = None
    quality: Quality | None = None


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
    fitting_seeds: tuple[Seed, ...]
    heldout_seeds: tuple[Seed, ...]
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


class Document(Frozen):
    """The JSON part of a policy file."""

    format: Literal[1] = 1
    name: Name
    profiles: dict[Name, Profile] = Field(min_length=1, max_length=64)
    model: ModelKey | None = None
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
