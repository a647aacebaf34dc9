"""The first call of a class without a row, with others around: contexts, threads, names of guidance branches."""

import threading
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.runtime.models.test_discovery import Network, sample, scheduler
from tests.tiny import Pipeline, policy, sample_flux, tiny_flux

from cachesmith.policies import Fixed, Interval, PolicyError, Reuse, Stack
from cachesmith.runtime import adapter_for, apply
from cachesmith.runtime.discovery.first_run import find_blocks

CHOSEN = policy(Stack(), Fixed(mask="CFCFFFFF"), Reuse())


class NewFlux(diffusers.FluxTransformer2DModel):  # type: ignore[misc]
    """A class that no row is known of."""


def new_flux() -> Pipeline:
    pipe = tiny_flux()
    pipe.transformer.__class__ = NewFlux
    return pipe


def test_the_first_request_is_drawn_as_every_other() -> None:
    """The pipeline names the branch of guidance before the first call is made."""
    pipe = new_flux()
    with apply(pipe, policy(Stack(), Interval(interval=4), Reuse())) as session:
        first, second = sample_flux(pipe), sample_flux(pipe)
    assert np.array_equal(first, second)
    one, other = session.stats.runs.values()
    assert one == other and [*one] == ["cond"]


def test_blocks_are_found_by_a_run_that_is_left_at_once() -> None:
    pipe, calls = new_flux(), []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    find_blocks(pipe, lambda: sample_flux(pipe))
    assert len(calls) == 1 and adapter_for(pipe.transformer).live == ("hidden_states",)
    assert "forward" not in vars(pipe.transformer)
    find_blocks(pipe, lambda: pytest.fail("they are known"))
    with apply(pipe, policy(Stack(), Interval(interval=4), Reuse())) as session:
        sample_flux(pipe)
    assert session.stats.nfc == 3 and not session.stats.fallbacks


@pytest.mark.parametrize("sampled", [False, True])
def test_a_second_context_is_refused_before_the_first_call_and_after_it(sampled: bool) -> None:
    network, plan = Network(), scheduler()
    with apply(network, CHOSEN, scheduler=plan) as session:
        if sampled:
            sample(network, plan)
        with (
            pytest.raises(PolicyError, match="already runs under a policy"),
            apply(network, CHOSEN, scheduler=plan),
        ):
            pass
        sample(network, plan)
    assert session.stats.nfc == 2 and not session.stats.fallbacks
    with apply(network, CHOSEN, scheduler=plan):
        pass


def test_another_thread_in_the_middle_of_the_first_call() -> None:
    """It computes its own blocks, whatever is being tried out with them."""
    torch.manual_seed(0)
    network, plan = Network(), scheduler()
    latent, time = torch.randn(1, 5, 8), torch.ones(1)
    expected, found = network(latent, time), []

    def elsewhere(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(
                target=lambda: found.append(type(network).forward(network, latent, time))
            )
            thread.start()
            thread.join()

    handle = network.layers[2].register_forward_pre_hook(elsewhere)
    with apply(network, CHOSEN, scheduler=plan) as session:
        sample(network, plan)
        handle.remove()
    assert session.stats.nfc == 2 and len(found) >= 8 > 2
    assert all(torch.equal(each, expected) for each in found)


def test_threads_that_all_make_the_first_call() -> None:
    """The others wait for the one that tells the blocks, then are told to be others' calls."""
    torch.manual_seed(0)
    network, plan = Network(), scheduler()
    latent, time = torch.randn(1, 5, 8), torch.ones(1)
    expected = network(latent, time)
    results: list[torch.Tensor] = []
    started, go = threading.Barrier(4), threading.Event()

    def call() -> None:
        started.wait()
        go.wait()
        with torch.no_grad():
            results.append(network(latent, time))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    plan.set_timesteps(8)
    with pytest.warns(RuntimeWarning), apply(network, CHOSEN, scheduler=plan):
        started.wait()
        go.set()
        for thread in threads:
            thread.join()
    assert len(results) == 3 and all(torch.equal(each, expected) for each in results)
