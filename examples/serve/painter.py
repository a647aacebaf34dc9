"""A pipeline under a policy, one request at a time; workers that share its weights."""

import io
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from cachesmith.policies import Policy
from cachesmith.runtime import apply

UNCACHED = "uncached"
"""The profile that computes every step."""


@dataclass(frozen=True)
class Picture:
    """An answer: PNG bytes, and what it took. `fallbacks`: reason -> how often a forecast was refused."""

    png: bytes
    profile: str
    nfc: float
    seconds: float
    fallbacks: dict[str, int]


class Painter:
    """Draws one picture after the other; every thread needs a painter of its own.

    arguments: of every pipeline call, such as `height` and `width`.
    """

    def __init__(self, pipe: Any, policy: Policy, steps: int, arguments: dict[str, Any]):
        self._pipe, self._policy, self._steps, self._arguments = pipe, policy, steps, arguments
        self.profiles = [UNCACHED, *policy.document.profiles]
        """Best quality first."""

    def __call__(self, prompt: str, seed: int, profile: str) -> Picture:
        """Draw the picture of a prompt and a seed: the same bytes, whatever is drawn beside it."""
        generator = torch.Generator().manual_seed(seed)
        cached = nullcontext() if profile == UNCACHED else apply(self._pipe, self._policy, profile)
        began = perf_counter()
        with cached as session:
            image = self._pipe(
                prompt, num_inference_steps=self._steps, generator=generator, **self._arguments
            ).images[0]
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        seconds = perf_counter() - began
        if session is None:
            return Picture(buffer.getvalue(), profile, float(self._steps), seconds, {})
        return Picture(buffer.getvalue(), profile, session.stats.nfc, seconds, dict(session.stats.fallbacks))
