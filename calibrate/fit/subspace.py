"""Principal subspaces of a lane's channels (SVD-Cache, arXiv 2601.07396)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.record.channel_recorder import runs
from cachesmith.policies import PolicyError, Units
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class Spectrum(NamedTuple):
    """Squared singular values [C], largest first, and the right singular vectors [C, C], columns in that order."""

    energies: Tensor
    vectors: Tensor


def record_moments(
    renderer: Renderer, requests: Sequence[Request], units: Units, distance: int
) -> dict[str, Tensor]:
    """Sample `requests` uncached, one at a time, and return lane -> second moments [C, C]; see `second_moment`."""
    each = [
        {lane: second_moment(outputs, distance) for lane, outputs in run.items()}
        for run in runs(renderer, requests, units)
    ]
    return {lane: torch.stack([moments[lane] for moments in each]).sum(0) for lane in each[0]}


def second_moment(outputs: Tensor, distance: int) -> Tensor:
    """F^T F over all rows of F, float64: [steps, ..., C] -> [C, C].

    With a `distance` above 0, F is the change of the outputs over that many steps instead of the outputs themselves.
    Raises `PolicyError` where the run is not longer than that.
    """
    if not 0 <= distance < len(outputs):
        raise PolicyError(f"distance is {distance}; give 0 to {len(outputs) - 1}, below the number of steps")
    total = torch.zeros(outputs.shape[-1], outputs.shape[-1], dtype=torch.float64)
    for step in range(distance, len(outputs)):
        moved = outputs[step] if distance == 0 else outputs[step] - outputs[step - distance]
        rows = moved.flatten(0, -2).double()
        total += rows.T @ rows
    return total


def spectrum(moment: Tensor) -> Spectrum:
    """Singular values and vectors of F from its second moment F^T F."""
    values, vectors = torch.linalg.eigh(moment)
    return Spectrum(values.flip(0).clamp_min(0), vectors.flip(1))


def rank(energies: Tensor, tau: float) -> int:
    """The smallest k whose largest k squared singular values hold at least the share `tau` of their sum."""
    if not 0 < tau <= 1:
        raise PolicyError(f"energy is {tau}; give a share above 0 and at most 1")
    if energies.sum() == 0:
        return 1
    held = energies.cumsum(0) / energies.sum()
    return min(int((held < tau - 1e-12).sum()) + 1, len(energies))


def bases(moments: dict[str, Tensor], tau: float) -> Tensor:
    """Orthonormal bases of all lanes, [lanes, C, k], float32, with the k of the lane that needs most.

    Raises `PolicyError` where lanes have different numbers of channels.
    """
    if len({len(moment) for moment in moments.values()}) > 1:
        raise PolicyError("lanes have different numbers of channels; use units `stack`")
    spectra = [spectrum(moment) for moment in moments.values()]
    width = max(rank(s.energies, tau) for s in spectra)
    return torch.stack([s.vectors[:, :width] for s in spectra]).float()
