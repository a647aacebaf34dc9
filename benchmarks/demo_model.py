"""The demo model as the benchmarks sample it."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from cachesmith.policies import Policy
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, requests

MODEL = "examples/fashion_dit/model"
STEPS, GUIDANCE, BATCH, LABELS = 50, 1.5, 32, 10
INTERVALS = {7: 9, 8: 7, 10: 6, 11: 5, 14: 4}
"""Full computations of 50 -> interval, with two steps of warm-up, as in the tables of RFC and TaylorSeer."""
SLACK = 0.3
"""How far NFC may be from a budget when a threshold is set to it."""
UNUSED = 900_000
"""First seed where there is no calibration that could have used it."""


def open_renderer(model: str, batch: int = BATCH) -> Renderer:
    """Load the pipeline in float32."""
    pipe: Any = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return Renderer(pipe, STEPS, batch, guidance_scale=GUIDANCE)


def unseen(policy: Policy | None, samples: int) -> list[Request]:
    """Labels in turn, with seeds that the policy's calibration never saw."""
    record = policy.document.calibration if policy else None
    first = record.unseen_seed if record else UNUSED
    return list(requests([{"class_labels": label} for label in range(LABELS)], samples, first))


def profile_within(policy: Policy, budget: int) -> str:
    """The policy's slowest profile that keeps to `budget` full computations."""
    costs = {name: profile.nfc or STEPS for name, profile in policy.document.profiles.items()}
    return max((name for name, nfc in costs.items() if nfc <= budget), key=lambda name: costs[name])
