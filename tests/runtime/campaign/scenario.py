"""One pipeline under one policy and what happens to it; every picture is judged."""

import random
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tests.runtime.campaign.changes import ALL
from tests.runtime.campaign.requests import (
    AFAR,
    SCHEDULERS,
    Asked,
    expected,
    expected_state,
    possible,
    state,
)
from tests.tiny import Pipeline

import cachesmith
from cachesmith.policies import PolicyError
from cachesmith.runtime import Session, apply
from cachesmith.runtime.hooks import clock

VARIETY = 3
"""Different requests of one scenario: pictures of fresh pipelines are what takes long."""


@dataclass
class Record:
    """What a campaign has seen: outcomes of requests, by event and over all, where requests were stopped, faults."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_event: Counter[tuple[str, str]] = field(default_factory=Counter)
    covered: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Scenario:
    """One pipeline under a profile of the policy; `record` is the campaign's."""

    session: Session
    caught: list[warnings.WarningMessage]

    def __init__(self, seed: int, record: Record):
        self.draw, self.seed, self.record = random.Random(seed), seed, record
        kind = self.draw.choice((*["dit"] * 4, *["flux"] * 3, "unknown"))
        dtype = self.draw.choice((torch.float32, torch.float32, torch.bfloat16))
        self.asked = Asked(kind, self.draw.randrange(len(SCHEDULERS[kind])), dtype)
        self.profile = self.draw.choice(self.asked.profiles)
        for _ in range(self.draw.choice((0, 0, 0, 1, 2))):
            self.make(self.draw.choice([*ALL]))
        self.pipe = self.asked.pipeline()
        self.log: list[str] = []
        self.afar, self.enabled = self.draw.random() < 0.5, self.draw.random() < 0.5
        self.covered(f"{kind}", f"{dtype}", f"profile {self.profile}", f"clock afar {self.afar}")
        self.covered(f"enabled {self.enabled}")

    def covered(self, *what: str) -> None:
        self.record.covered.update(what)

    def make(self, change: str) -> bool:
        """Whether diffusers can make the change now; if so, it belongs to the pipeline from here on."""
        changed = replace(self.asked, changes=(*self.asked.changes, change))
        if not possible(changed.plainest()):
            return False
        self.asked = changed
        self.covered(change)
        return True

    def run(self, events: list[Any]) -> None:
        """So many events in a context, then a request after it."""
        with ExitStack() as stack:
            afar = AFAR if not self.afar else lambda timestep: isinstance(timestep, torch.Tensor)
            stack.enter_context(patch.object(clock, "_afar", afar))
            self.caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            try:
                self.enter(stack)
            except PolicyError as error:
                self.refused("entering", self.request(), self.profile, error)
                return
            for _ in range(self.draw.randrange(10, 30)):
                event = self.draw.choice(events)
                self.log.append(event.__name__)
                event(self)
        self.log.append("left")
        self.check("after the context", self.pipe, self.request(), None)
        if state(self.pipe) != expected_state(self.asked.plainest()):
            self.fault("the pipeline is not as it would be without us")

    def enter(self, stack: ExitStack) -> None:
        """Put the pipeline under the policy, until `stack` is left."""
        if self.enabled:
            self.session = cachesmith.enable(self.pipe, self.asked.policy, self.profile)
            stack.callback(cachesmith.disable, self.pipe)
        else:
            self.session = stack.enter_context(apply(self.pipe, self.asked.policy, self.profile))

    def request(self) -> Asked:
        """One of a few that this pipeline and its profile take."""
        draw = random.Random(self.seed * VARIETY + self.draw.randrange(VARIETY))
        return self.asked.other(draw, self.profile)

    def check(
        self,
        what: str,
        pipe: Pipeline,
        asked: Asked,
        profile: str | None,
        *,
        session: Session | None = None,
        told: bool = False,
    ) -> None:
        """Sample and compare. A picture that is not the profile's may be uncached where that is `told`."""
        before = self.told(session)
        try:
            got = asked.sample(pipe)
        except PolicyError as error:
            self.refused(what, asked, profile, error)
            return
        self.judge(what, got, asked, profile, told and self.told(session) > before)

    def refused(self, what: str, asked: Asked, profile: str | None, error: PolicyError) -> None:
        """A request was refused; so is a fresh pipeline's."""
        if profile is not None and expected(asked, profile) is None:
            self.count(what, "refused")
        else:
            self.count(what, "deviates")
            self.fault(f"{what} was refused: {error}")

    def judge(self, what: str, got: np.ndarray, asked: Asked, profile: str | None, told: bool) -> None:
        """Compare with the pictures of fresh pipelines."""
        right, plain = expected(asked, profile), expected(asked, None)
        assert plain is not None
        if right is not None and np.array_equal(got, right):
            self.count(what, "uncached" if profile is None else "the policy's")
        elif told and np.array_equal(got, plain):
            self.count(what, "uncached, told")
        else:
            away = "refused" if right is None else f"{np.abs(got - right).max():.3g} from the right picture"
            self.count(what, "deviates")
            self.fault(f"{what}: {away}, {np.abs(got - plain).max():.3g} from uncached, {asked}")

    def count(self, what: str, outcome: str) -> None:
        self.record.outcomes[outcome] += 1
        self.record.by_event[what, outcome] += 1

    def fault(self, what: str) -> None:
        self.record.faults.append(f"seed {self.seed}, {self.profile}, after {self.log}: {what}")

    def told(self, session: Session | None) -> int:
        """How often something was told so far."""
        own = sum("cachesmith" in str(w.message) or "policy" in str(w.message) for w in [*self.caught])
        return own + (0 if session is None else sum(session.stats.fallbacks.values()))
