"""What happens to a pipeline under a policy."""

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from tests.runtime.campaign.changes import ALL
from tests.runtime.campaign.interruptions import ERRORS, ONCE, PLACES, stopping
from tests.runtime.campaign.requests import Asked
from tests.runtime.campaign.scenario import Scenario
from tests.tiny import Pipeline

import cachesmith
from cachesmith.policies import PolicyError
from cachesmith.runtime import apply


def a_request(on: Scenario) -> None:
    on.check("a request", on.pipe, on.request(), on.profile, session=on.session)


def a_stopped_request(on: Scenario) -> None:
    asked, place, stop = on.request(), on.draw.choice(PLACES), on.draw.choice(ERRORS)
    at = 1 if place in ONCE else on.draw.randrange(1, asked.steps + 1)
    try:
        with suppress(*ERRORS), stopping(on.pipe, place, at, stop):
            asked.sample(on.pipe)
    except PolicyError as error:
        on.refused("a stopped request", asked, on.profile, error)
        return
    on.count("a stopped request", "stopped")
    on.covered(f"stopped: {place}", f"stopped at {at}")


def a_change(on: Scenario) -> None:
    """Something is done to the pipeline; then a request."""
    name = on.draw.choice([*ALL])
    if not on.make(name):
        return
    on.log[-1] = name
    ALL[name].make(on.pipe)
    on.check("after a change", on.pipe, on.request(), on.profile, session=on.session)


def another_profile(on: Scenario) -> None:
    """The server's operator chooses another profile; what is refused leaves the present one."""
    chosen = on.draw.choice(on.asked.profiles)
    on.log[-1] = f"profile {chosen}"
    try:
        on.session.use(chosen)
    except PolicyError as error:
        on.refused("another profile", on.asked.other(on.draw, chosen), chosen, error)
    else:
        on.profile = chosen
        on.covered(f"profile {chosen}")
    a_request(on)


def another_pipeline(on: Scenario) -> None:
    other = _other(on)
    on.check("another pipeline", other, on.request(), None)


def _other(on: Scenario) -> Pipeline:
    """A pipeline of the same parts, with a scheduler of its own."""
    other = copy.copy(on.pipe)
    other.scheduler = on.asked.new_scheduler()
    return other


def another_pipeline_on_the_scheduler(on: Scenario) -> None:
    on.check("a pipeline of the same parts", copy.copy(on.pipe), on.request(), on.profile, session=on.session)


def another_scheduler(on: Scenario) -> None:
    on.pipe.scheduler = on.asked.new_scheduler()
    on.check("another scheduler", on.pipe, on.request(), on.profile, session=on.session)


def a_copy(on: Scenario) -> None:
    if on.asked.shared:
        on.check("a deep copy", copy.deepcopy(on.pipe), on.request(), None)


def a_worker(on: Scenario) -> None:
    if not on.asked.shared:
        return
    worker = cachesmith.replicate(on.pipe)
    with apply(worker, on.asked.policy, on.profile) as own:
        on.check("a worker", worker, on.request(), on.profile, session=own)


def workers_at_once(on: Scenario) -> None:
    """Two workers on one set of weights, each in a thread of its own, at the same time."""
    if not on.asked.shared:
        return
    workers = [(cachesmith.replicate(on.pipe), on.request()) for _ in range(2)]
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        worker, asked = workers[index]
        with apply(worker, on.asked.policy, on.profile):
            results[index] = asked.sample(worker)

    _together(*(lambda index=index: work(index) for index in range(2)))
    for index, (_, asked) in enumerate(workers):
        on.judge("workers at once", results[index], asked, on.profile, told=False)


def in_a_thread(on: Scenario) -> None:
    asked = on.request()
    _together(lambda: on.check("a thread", on.pipe, asked, on.profile, session=on.session))


def threads_on_one_transformer(on: Scenario) -> None:
    """The pipeline, and another one on the same transformer, each in a thread of its own, at the same time."""
    asked, inner = on.request(), on.request()
    other = _other(on)
    results: dict[str, Any] = {}
    before = on.told(on.session)

    def sample(name: str, pipe: Any, request: Any) -> None:
        try:
            results[name] = request.sample(pipe)
        except PolicyError as error:
            results[name] = error

    _together(lambda: sample("own", on.pipe, asked), lambda: sample("other", other, inner))
    told = on.told(on.session) > before
    for name, request, profile in (("own", asked, on.profile), ("other", inner, None)):
        what = f"threads on one transformer, {name}"
        if isinstance(results[name], PolicyError):
            on.refused(what, request, profile, results[name])
        else:
            on.judge(what, results[name], request, profile, told)


def _together(*work: Any) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _between_steps(on: Scenario, asked: Asked, happens: Callable[[], None]) -> Any:
    """`happens` after one step of the request, drawn at random."""
    step, at, done = on.pipe.scheduler.step, on.draw.randrange(asked.steps), count()

    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if next(done) == at:
            happens()
        return result

    return patch.object(on.pipe.scheduler, "step", stepped)


def in_the_middle_of_a_request(on: Scenario) -> None:
    """Another pipeline on the same transformer samples between two steps."""
    asked, inner = on.request(), on.request()
    other = _other(on)
    with _between_steps(on, asked, lambda: on.check("in the middle", other, inner, None)):
        on.check("around another", on.pipe, asked, on.profile, session=on.session, told=True)


def stopped_in_the_middle(on: Scenario) -> None:
    """Another pipeline's request is stopped between two steps of this one's."""
    asked, inner = on.request(), on.request()
    other = _other(on)
    stop = on.draw.randrange(1, inner.steps)

    def stopped() -> None:
        with suppress(RuntimeError), stopping(other, "block", stop, RuntimeError):
            inner.sample(other)
        on.count("stopped in the middle", "stopped")

    with _between_steps(on, asked, stopped):
        on.check("around a stopped one", on.pipe, asked, on.profile, session=on.session, told=True)


def nested(on: Scenario) -> None:
    """A context on another model, on the same scheduler, left before the next request or after it."""
    other = on.asked.pipeline()
    other.scheduler = on.pipe.scheduler
    with ExitStack() as inner:
        try:
            own = inner.enter_context(apply(other, on.asked.policy, on.profile))
        except PolicyError as error:
            on.refused("a nested context", on.request(), on.profile, error)
            return
        on.check("inside a nested context", other, on.request(), on.profile, session=own)
        on.check("around a nested context", on.pipe, on.request(), on.profile, session=on.session)


def a_second_context(on: Scenario) -> None:
    """A context on the same transformer is refused, and harms nothing."""
    try:
        with apply(copy.copy(on.pipe), on.asked.policy, on.profile):
            on.fault("a second context on one transformer was not refused")
    except PolicyError:
        on.count("a second context", "refused")
    a_request(on)


def another_cache(on: Scenario) -> None:
    """diffusers' own cache is switched on: refused, and right again once it is off."""
    if not on.make("another cache, on and off"):
        return
    on.pipe.transformer.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=3))
    try:
        on.request().sample(on.pipe)
        on.fault("another cache was not refused")
    except PolicyError:
        on.count("another cache", "refused")
    on.pipe.transformer.disable_cache()
    a_request(on)


def autocast(on: Scenario) -> None:
    """A request under autocast, which fresh pipelines draw as well."""
    asked = on.request()
    with torch.autocast("cpu", torch.bfloat16):
        try:
            got = asked.sample(on.pipe)
        except PolicyError as error:
            on.refused("autocast", asked, on.profile, error)
            return
        fresh = asked.pipeline()
        with apply(fresh, on.asked.policy, on.profile):
            right = asked.sample(fresh)
    if np.array_equal(got, right):
        on.count("autocast", "the policy's")
    else:
        on.fault(f"autocast: {np.abs(got - right).max():.3g} from the right picture, {asked}")


EVENTS = [
    *[a_request] * 4,
    *[a_stopped_request] * 4,
    *[a_change] * 3,
    *[another_profile] * 2,
    another_pipeline,
    another_pipeline_on_the_scheduler,
    another_scheduler,
    a_copy,
    a_worker,
    workers_at_once,
    in_a_thread,
    threads_on_one_transformer,
    in_the_middle_of_a_request,
    stopped_in_the_middle,
    nested,
    a_second_context,
    another_cache,
    autocast,
]
