"""Randomised use of sessions: every picture is compared, to the bit, with the one of a fresh pipeline.

    python -m tests.runtime.campaign --requests 10000 --seed 0

A scenario is one pipeline under a policy and what a server does with it: requests of all kinds that end or are stopped
anywhere, other pipelines and threads on the same transformer, copies, replaced schedulers, hooks of other tools, nested
contexts; on the host's and the accelerator's branch of the clock. A picture is right if it is the policy's, or uncached
and that was told.
"""

import argparse
import copy
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux

import cachesmith
from cachesmith.policies import (
    Interval,
    Modules,
    Policy,
    PolicyError,
    Relational,
    Segments,
    Stack,
    Taylor,
)
from cachesmith.runtime import Session, apply
from cachesmith.runtime.hooks import clock

POLICIES: dict[str, Callable[[], Policy]] = {
    "stack, interval": lambda: policy(Stack(), Interval(interval=4)),
    "stack, warm-up": lambda: policy(Stack(), Interval(interval=3, warmup=2), Taylor(order=2)),
    "segments": lambda: policy(Segments(starts=(0, 2)), Interval(interval=3)),
    "modules": lambda: policy(Modules(), Interval(interval=3)),
    "relational": lambda: policy(Stack(), Relational(thresholds=(0.3,))),
}
SCHEDULERS: dict[str, list[Callable[[], Any]]] = {
    "dit": [
        diffusers.DDIMScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
    ],
    "flux": [
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
}


class StoppedError(BaseException):
    """A request ends here, as by the keyboard."""


@dataclass(frozen=True)
class Asked:
    """One request, and the pipeline it is for."""

    kind: str
    scheduler: int
    dtype: torch.dtype
    steps: int = 8
    batch: int = 1
    guided: bool = False
    size: int = 16
    seed: int = 0

    def pipeline(self) -> Pipeline:
        make = SCHEDULERS[self.kind][self.scheduler]
        pipe = (tiny_dit if self.kind == "dit" else tiny_flux)(scheduler=make())
        return pipe.to(self.dtype)

    def other(self, draw: random.Random) -> "Asked":
        """Another request for the same pipeline."""
        return replace(
            self,
            steps=draw.choice((8, 9)),
            batch=draw.choice((1, 1, 2)),
            guided=draw.random() < 0.4,
            size=draw.choice((16, 16, 24)) if self.kind == "flux" else 16,
            seed=draw.randrange(2),
        )

    def sample(self, pipe: Pipeline) -> np.ndarray:
        torch.manual_seed(self.seed)
        if self.kind == "dit":
            scale = 3.0 if self.guided else 1.0
            labels = tuple(range(1, 1 + self.batch))
            return np.asarray(sample_dit(pipe, self.seed, self.steps, labels, guidance_scale=scale))
        cfg = {"true_cfg_scale": 2.0} if self.guided else {}
        return np.asarray(sample_flux(pipe, self.seed, self.steps, self.batch, self.size, **cfg))


@cache
def expected(asked: Asked, name: str | None) -> np.ndarray:
    """The picture of a fresh pipeline: uncached, or under a policy."""
    pipe = asked.pipeline()
    if name is None:
        return asked.sample(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with apply(pipe, POLICIES[name]()):
            return asked.sample(pipe)


@contextmanager
def stopping(pipe: Pipeline, call: int, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` inside the `call`-th transformer call, in its second block."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise error

    handle = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Scenario:
    """One pipeline under one policy."""

    def __init__(self, seed: int, outcomes: Counter[str], faults: list[str]):
        self.draw, self.seed, self.outcomes, self.faults = random.Random(seed), seed, outcomes, faults
        kind = self.draw.choice(("dit", "flux"))
        dtype = self.draw.choice((torch.float32, torch.float32, torch.bfloat16))
        self.asked = Asked(kind, self.draw.randrange(len(SCHEDULERS[kind])), dtype)
        self.name = self.draw.choice([*POLICIES])
        self.pipe = self.asked.pipeline()
        self.log: list[str] = []

    def run(self) -> None:
        afar = self.draw.random() < 0.5
        before = self._state()
        with ExitStack() as stack:
            stack.enter_context(patch.object(clock, "_afar", lambda _: afar))
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            self.caught = caught
            session = stack.enter_context(apply(self.pipe, POLICIES[self.name]()))
            for _ in range(self.draw.randrange(4, 12)):
                event = self.draw.choice(EVENTS)
                self.log.append(event.__name__)
                event(self, session)
        if self._state() != before:
            self.faults.append(f"seed {self.seed}: the pipeline is not as it was, after {self.log}")
        self.check("after the context", self.pipe, self.asked.other(self.draw), None, None)

    def check(
        self,
        what: str,
        pipe: Pipeline,
        asked: Asked,
        name: str | None,
        session: Session | None,
        told: bool = False,
    ) -> None:
        """Sample and compare. A picture that is not the policy's is uncached, and `told` or noticed to be so."""
        before = self._told(session)
        try:
            got = asked.sample(pipe)
        except PolicyError:
            self.outcomes["refused"] += 1
            return
        self.judge(what, got, asked, name, told or self._told(session) > before)

    def judge(self, what: str, got: np.ndarray, asked: Asked, name: str | None, told: bool) -> None:
        if np.array_equal(got, expected(asked, name)):
            self.outcomes["the policy's" if name else "uncached"] += 1
        elif told and np.array_equal(got, expected(asked, None)):
            self.outcomes["uncached, told"] += 1
        else:
            self.outcomes["deviates"] += 1
            self.faults.append(
                f"seed {self.seed}: {what}, {asked}, {self.name}, told {told}, after {self.log}"
            )

    def _told(self, session: Session | None) -> int:
        return len(self.caught) + (0 if session is None else sum(session.stats.fallbacks.values()))

    def _state(self) -> list[Any]:
        """What stands on the instances that a class does not give them."""
        owners = [*self.pipe.transformer.modules(), self.pipe.scheduler]
        return [
            sorted(set(vars(owner)) & {"forward", "step", "set_timesteps", "cache_context"})
            for owner in owners
        ] + [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in self.pipe.transformer.modules()]


def a_request(on: Scenario, session: Session) -> None:
    on.check("a request", on.pipe, on.asked.other(on.draw), on.name, session)


def a_stopped_request(on: Scenario, session: Session) -> None:
    asked = on.asked.other(on.draw)
    error = on.draw.choice((StoppedError, RuntimeError))
    with (
        suppress(StoppedError, RuntimeError),
        stopping(on.pipe, on.draw.randrange(1, asked.steps + 1), error),
    ):
        asked.sample(on.pipe)
    on.outcomes["stopped"] += 1


def another_pipeline(on: Scenario, session: Session) -> None:
    other = copy.copy(on.pipe)
    other.scheduler = SCHEDULERS[on.asked.kind][on.asked.scheduler]()
    # a caller that has been told of is told of by the count of its calls
    on.check("another pipeline", other, on.asked.other(on.draw), None, session)


def another_pipeline_on_the_scheduler(on: Scenario, session: Session) -> None:
    on.check("a pipeline of the same parts", copy.copy(on.pipe), on.asked.other(on.draw), on.name, session)


def another_scheduler(on: Scenario, session: Session) -> None:
    on.pipe.scheduler = SCHEDULERS[on.asked.kind][on.asked.scheduler]()
    on.check("another scheduler", on.pipe, on.asked.other(on.draw), on.name, session)


def a_copy(on: Scenario, session: Session) -> None:
    on.check("a deep copy", copy.deepcopy(on.pipe), on.asked.other(on.draw), None, None)


def a_worker(on: Scenario, session: Session) -> None:
    worker = cachesmith.replicate(on.pipe)
    with apply(worker, POLICIES[on.name]()) as own:
        on.check("a worker", worker, on.asked.other(on.draw), on.name, own)


def workers_at_once(on: Scenario, session: Session) -> None:
    workers = [(cachesmith.replicate(on.pipe), on.asked.other(on.draw)) for _ in range(2)]
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        worker, asked = workers[index]
        with apply(worker, POLICIES[on.name]()):
            torch.manual_seed(0)
            results[index] = asked.sample(worker)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (_, asked) in enumerate(workers):
        on.judge("workers at once", results[index], asked, on.name, told=False)


def in_a_thread(on: Scenario, session: Session) -> None:
    asked = on.asked.other(on.draw)
    thread = threading.Thread(target=lambda: on.check("a thread", on.pipe, asked, on.name, session))
    thread.start()
    thread.join()


def in_the_middle_of_a_request(on: Scenario, session: Session) -> None:
    """Another pipeline on the same transformer samples between two steps."""
    asked, inner = on.asked.other(on.draw), on.asked.other(on.draw)
    other = copy.copy(on.pipe)
    other.scheduler = SCHEDULERS[on.asked.kind][on.asked.scheduler]()
    step, at, done = on.pipe.scheduler.step, on.draw.randrange(asked.steps), []

    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        done.append(0)
        if len(done) == at + 1:
            on.check("in the middle", other, inner, None, session)
        return result

    with patch.object(on.pipe.scheduler, "step", stepped):
        on.check("around another", on.pipe, asked, on.name, session)


def nested(on: Scenario, session: Session) -> None:
    """A context on another model, on the same scheduler, left before the next request or after it."""
    other = on.asked.pipeline()
    other.scheduler = on.pipe.scheduler
    inner = ExitStack()
    own = inner.enter_context(apply(other, POLICIES[on.name]()))
    on.check("inside a nested context", other, on.asked.other(on.draw), on.name, own)
    on.check("around a nested context", on.pipe, on.asked.other(on.draw), on.name, session)
    inner.close()


EVENTS = [
    a_request,
    a_request,
    a_request,
    a_stopped_request,
    a_stopped_request,
    another_pipeline,
    another_pipeline_on_the_scheduler,
    another_scheduler,
    a_copy,
    a_worker,
    workers_at_once,
    in_a_thread,
    in_the_middle_of_a_request,
    nested,
]


def campaign(requests: int, seed: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """Run scenarios until so many requests were made, or so many seconds passed."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    end = time.monotonic() + seconds
    while outcomes.total() < requests and time.monotonic() < end:
        Scenario(seed, outcomes, faults).run()
        seed += 1
    return outcomes, faults


def main() -> None:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1200)
    args = parser.parse_args()
    outcomes, faults = campaign(args.requests, args.seed, args.seconds)
    print(f"{outcomes.total()} requests:", dict(outcomes))
    for fault in faults:
        print("FAULT", fault)


if __name__ == "__main__":
    main()
