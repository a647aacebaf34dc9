"""Which samples a policy is measured on: never those it was fitted on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cachesmith.policies import Calibration, Policy

if TYPE_CHECKING:
    from cachesmith.calibrate.prompts import Prompt, Request

SAMPLES = 16
"""Where the policy does not say how many samples it was measured on."""


def heldout(
    policy: Policy | None, file: Path, samples: int | None, seed: int | None
) -> "tuple[Request, ...]":
    """Return what to sample from a file of prompts.

    If the policy was calibrated with this file, only its held-out part is used; any other file is used whole. Unless
    the user gives a seed, the policy's held-out seeds are used, which the calibration did not see before.
    """
    from cachesmith.calibrate.prompts import read_prompts, requests

    record = None if policy is None else policy.document.calibration
    prompts = read_prompts(file)
    if record is None:
        return requests(prompts, samples or SAMPLES, seed or 0)
    first = record.heldout_seeds[0] if seed is None and record.heldout_seeds else seed or 0
    return requests(_part(prompts, record), samples or record.heldout_size, first)


def _part(prompts: "Sequence[Prompt]", record: Calibration) -> "Sequence[Prompt]":
    """Split the prompts as the calibration did, and see by the digest whether they are the same."""
    from cachesmith.calibrate.prompts import digest, split

    again = split(prompts, record.fitting_size, 0, record.heldout_size, 0).heldout
    same = digest(again) == record.heldout_prompts
    return [request.arguments for request in again] if same else prompts
