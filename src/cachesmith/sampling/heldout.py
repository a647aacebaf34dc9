"""Which samples a policy is measured on: never those it was fitted on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachesmith.policies import Policy

if TYPE_CHECKING:
    from cachesmith.sampling.requests import Request

_SAMPLES = 16
"""Where the policy does not say how many samples it was measured on."""

UNSEEN = 1_000_000
"""First seed where the policy does not say what it was measured on: what is fitted by hand starts at 0."""


def heldout(
    policy: Policy | None,
    file: Path,
    samples: int | None,
    seed: int | None,
    common: Mapping[str, Any] | None = None,
) -> "tuple[Request, ...]":
    """Return what to sample from a file of prompts, each with those of the `common` arguments that it has not.

    If the policy was calibrated with this file, only its held-out part is used, whether or not calibration was given
    the same `common` arguments; any other file is used whole. Unless the user gives a seed, the policy's held-out seeds
    are used, which the calibration did not see before.
    """
    from cachesmith.sampling.requests import completed, heldout_part, read_prompts, requests

    listed = read_prompts(file)
    record = None if policy is None else policy.document.calibration
    if seed is None:
        seed = record.heldout_seeds[0] if record is not None and record.heldout_seeds else UNSEEN
    size = _SAMPLES if record is None else record.heldout_size
    whole = completed(listed, common or {})
    part = heldout_part(whole, record)
    if part is whole:
        part = completed(heldout_part(listed, record), common or {})
    return requests(part, samples or size, seed)
