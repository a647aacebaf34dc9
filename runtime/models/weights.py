"""What identifies weights whatever precision they are held in: a few numbers of every parameter."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cachesmith.policies import ModelKey

SAMPLES_PER_TENSOR = 64
MARKED = 8
"""Values of a tensor that are held against what they were in the request before."""

DROPPED = "_cachesmith_dropped"
"""Attribute of a transformer without weights: the `ModelKey` that it had with them."""

SIGNS = 1 - 2 * torch.tensor([int(c) for c in f"{0x9E3779B97F4A7C15:064b}"], dtype=torch.float32)
"""Fixed signs, of the golden ratio's digits, that a tensor's values are summed with."""

_SLACK = 0.02
"""How far the numbers of equal weights may be apart, relative to the values' root mean square. Rounding to bfloat16
moves a sum of 64 values by up to 0.016 of it."""

Numbers = tuple[float, float] | None
"""Root mean square, and sum with `SIGNS` over the root of the count, of up to 64 evenly spaced values of a tensor; None
where they cannot be read."""


def picked(value: Tensor) -> Tensor:
    """Up to 64 evenly spaced values of a parameter, float32; raises what the tensor's class raises if it has none."""
    plain = value.detach()
    if type(plain) is not Tensor and type(plain) is not nn.Parameter and hasattr(plain, "dequantize"):
        plain = plain.dequantize()
    flat = plain.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR].float()


@torch.no_grad()
def weights_hash(transformer: nn.Module) -> str | None:
    """Sha256 over names, shapes and 64 evenly spaced values (as bfloat16) of every parameter: fast.

    None while parameters cannot be read: offloaded, or of a tensor class that has no values of its own.
    """
    digest = hashlib.sha256()
    for name, value in _parameters(transformer):
        sample = _read(value)
        if sample is None:
            return None
        digest.update(f"{name}:{tuple(value.shape)}:".encode())
        digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def present_weights(transformer: nn.Module) -> str | None:
    """The weights' hash, from before they were dropped for engines if they were; None where they cannot be read."""
    remembered: ModelKey | None = vars(transformer).get(DROPPED)
    return weights_hash(transformer) if remembered is None else remembered.weights_hash


@torch.no_grad()
def weights_sketch(transformer: nn.Module) -> tuple[Numbers, ...] | None:
    """Two numbers of every parameter, in the order of their names; None while some are offloaded.

    Unlike the hash, the sketches of the same weights in float32, bfloat16 and float16 are near each other.
    """
    own = [value for name, value in _parameters(transformer) if _own(name)]
    if any(value.is_meta for value in own):
        return None
    samples = [_read(value) for value in own]
    return tuple(None if sample is None else _numbers(sample.cpu()) for sample in samples)


class WeightMarks:
    """A few values of each parameter: who fuses a LoRA writes to `weight.data`, which counts no version.

    They are read at once, by one copy a device and dtype. Parameters that are offloaded, or have no values of their
    own, are left out.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        places: dict[tuple[torch.device, torch.dtype], list[tuple[int, tuple[int], tuple[int]]]] = {}
        for index, value in enumerate(parameters):
            if is_plain(value) and not value.is_meta and value.is_contiguous() and (count := value.numel()):
                place = index, (min(MARKED, count),), (max(1, count // MARKED),)
                places.setdefault((value.device, value.dtype), []).append(place)
        self._groups = [tuple(zip(*each, strict=True)) for each in places.values()]

    @torch.no_grad()
    def read(self, parameters: Sequence[Tensor]) -> tuple[bytes, ...]:
        """The values as they are now, of the same parameters."""
        return tuple(
            torch.cat([*map(torch.as_strided, map(parameters.__getitem__, indices), sizes, steps)])
            .cpu()
            .view(torch.uint8)
            .numpy()
            .tobytes()
            for indices, sizes, steps in self._groups
        )


def is_plain(value: Tensor) -> bool:
    """Whether a parameter has its values as its own memory, as those of quantised tensor classes have not."""
    return type(value) in (nn.Parameter, Tensor) and value.layout is torch.strided


def same_weights(a: Sequence[Numbers], b: Sequence[Numbers]) -> bool:
    """Whether two sketches are of the same weights; parameters that could not be read are not compared."""
    return a == b or (len(a) == len(b) and all(_near(x, y) for x, y in zip(a, b, strict=True)))


def _near(a: Numbers, b: Numbers) -> bool:
    if a is None or b is None:
        return True
    slack = _SLACK * max(a[0], b[0]) + 1e-6
    return all(abs(x - y) <= slack for x, y in zip(a, b, strict=True))


def _numbers(sample: Tensor) -> Numbers:
    if not sample.numel():
        return 0.0, 0.0
    signed = (sample * SIGNS[: len(sample)]).sum() / len(sample) ** 0.5
    size = sample.square().mean().sqrt()
    return (float(f"{size:.4g}"), float(f"{signed:.4g}")) if torch.isfinite(signed + size) else None


def _read(value: Tensor) -> Tensor | None:
    if value.is_meta:
        return None
    try:
        return picked(value)
    except (NotImplementedError, RuntimeError, TypeError, AttributeError):
        return None  # a quantised tensor that does inference only


def _parameters(transformer: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters by the names they have where nothing is compiled."""
    named = ((name.replace("_orig_mod.", ""), value) for name, value in transformer.named_parameters())
    return sorted(named, key=lambda item: item[0])


def _own(name: str) -> bool:
    """Whether a parameter is the model's, not a LoRA's beside it."""
    return "lora_" not in name
