"""The policy that pipelines of the campaign run under: one document, a profile for every kind of gate and forecast."""

from functools import cache

import numpy as np
from tests.tiny import policy

from cachesmith.policies import (
    Document,
    Fitted,
    Fixed,
    Interval,
    Modules,
    Policy,
    Profile,
    Relational,
    Segments,
    Stack,
    Taylor,
    preset,
)

STEPS = 8
"""Of profiles that are made for one number of steps."""

MASKED = ("half-steps", "fitted")
WHOLE = ("stack", "warmup", "relational", "easycache", "freqca", "fitted")
"""Profiles of the whole stack, which any transformer has."""


def _profiles() -> dict[str, Profile]:
    own = {
        "stack": policy(Stack(), Interval(interval=4)),
        "warmup": policy(Stack(), Interval(interval=3, warmup=2), Taylor(order=2)),
        "segments": policy(Segments(starts=(0, 2)), Interval(interval=3)),
        "modules": policy(Modules(), Interval(interval=3)),
        "relational": policy(Stack(), Relational(thresholds=(0.3,))),
        "half-steps": policy(
            Stack(follower="later"), Fixed(mask="CCFCFFCF", groups={"guidance": "CCFFFFCF"})
        ),
        "fitted": policy(Stack(), Fixed(mask="CCFFCFFC"), Fitted(weights="w"), _arrays(1)),
    }
    published = ("teacache", "easycache", "freqca", "rfc", "toca", "clusca", "fbcache", "confidence", "speca")
    return {name: each.profile() for name, each in own.items()} | {n: preset(n).profile() for n in published}


def _arrays(lanes: int) -> dict[str, np.ndarray]:
    rows = np.tile(np.array([1.25, -0.25], np.float32), (lanes, STEPS, 1))
    return {"w": rows}


PROFILES = _profiles()


@cache
def policy_for(lanes: int) -> Policy:
    """The policy for transformers whose stack has so many streams."""
    return Policy(Document(name="campaign", profiles=PROFILES), _arrays(lanes))
