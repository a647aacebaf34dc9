"""Whoever calls the transformer gets the policy's picture, or an uncached one and is told: never another's features."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux

import cachesmith
from cachesmith.policies import Interval, PolicyError, Reuse, Stack, preset
from cachesmith.runtime import apply
from cachesmith.runtime.hooks import clock

REUSE = policy(Stack(), Interval(interval=10), Reuse())


class StoppedError(Exception):
    pass


def stop(*_: Any) -> None:
    raise StoppedError


def own(pipe: Pipeline) -> Pipeline:
    """Another pipeline on the same networks, with a scheduler of its own."""
    parts = (pipe.transformer, pipe.vae, type(pipe.scheduler).from_config(pipe.scheduler.config))
    other = diffusers.DiTPipeline(*parts)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture(params=[False, True], ids=["host", "accelerator"])
def afar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_afar", lambda _: request.param)


@pytest.mark.parametrize("before", [None, 10])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.usefixtures("afar")
def test_another_pipeline_with_a_scheduler_of_its_own(dit: Pipeline, before: int | None, steps: int) -> None:
    other = own(dit)
    expected = sample_dit(other, steps=steps)
    with apply(dit, REUSE) as session:
        if before is not None:
            sample_dit(dit, 5, before)
        with pytest.warns(RuntimeWarning, match="another pipeline"):
            assert np.array_equal(sample_dit(other, steps=steps), expected)
        cached = sample_dit(dit, steps=steps)
    assert session.stats.fallbacks[clock.ANOTHER_PIPELINE] >= 1
    with apply(dit, REUSE):
        assert np.array_equal(sample_dit(dit, steps=steps), cached)


@pytest.mark.filterwarnings("ignore:cachesmith computed a step")
def test_another_pipeline_between_two_steps(flux: Pipeline) -> None:
    other = copy.copy(flux)
    other.scheduler = type(flux.scheduler).from_config(flux.scheduler.config)
    expected = sample_flux(other, 3)
    with apply(flux, REUSE):
        alone = sample_flux(flux)
    pictures = []

    def between(pipe: Pipeline, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 4:
            pictures.append(sample_flux(other, 3))
        return kwargs

    with apply(flux, REUSE):
        around = sample_flux(flux, callback_on_step_end=between)
    assert np.array_equal(around, alone) and np.array_equal(pictures[0], expected)


@pytest.mark.usefixtures("afar")
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_was_stopped_leaves_nothing_to_the_next(flux: Pipeline, step: int) -> None:
    with apply(flux, REUSE):
        expected = sample_flux(flux, 3)
    for after in (lambda pipe: pipe, replaced, copied):
        pipe = tiny_flux()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with apply(pipe, REUSE):
                with pytest.raises(StoppedError):
                    sample_flux(pipe, 9, callback_on_step_end=lambda *a: stop() if a[1] == step else a[3])
                after(pipe)
                assert np.array_equal(sample_flux(pipe, 3), expected)


def replaced(pipe: Pipeline) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)


def copied(pipe: Pipeline) -> None:
    pipe.scheduler = copy.deepcopy(pipe.scheduler)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_run_that_was_stopped_inside_a_block(dit: Pipeline, call: int, error: type[BaseException]) -> None:
    with apply(dit, REUSE):
        expected = sample_dit(dit)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error

    with apply(dit, REUSE):
        with pytest.raises(error), dit.transformer.transformer_blocks[2].register_forward_pre_hook(fail):
            sample_dit(dit, 9)
        assert np.array_equal(sample_dit(dit), expected)


def loop(pipe: Pipeline, seed: int, stop_after: int = 10) -> torch.Tensor:
    """A sampler of one's own that calls neither `set_timesteps` nor `step`."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    for t in pipe.scheduler.timesteps[:stop_after]:
        with torch.no_grad():
            x = x - 0.1 * pipe.transformer(x, t[None], class_labels=torch.tensor([1])).sample
    return x


@pytest.mark.parametrize("stop_after", [1, 4, 10])
@pytest.mark.usefixtures("afar")
def test_a_loop_of_ones_own_that_was_stopped(dit: Pipeline, stop_after: int) -> None:
    dit.scheduler.set_timesteps(10)
    with apply(dit, REUSE):
        expected = loop(dit, 0)
    with apply(dit, REUSE):
        loop(dit, 1, stop_after)
        assert torch.equal(loop(dit, 0), expected)


def test_a_scheduler_that_was_never_set(dit: Pipeline) -> None:
    """The caller steps another one: nothing of this one's list is known to hold."""
    timesteps = own(dit).scheduler
    timesteps.set_timesteps(10)
    x, labels = torch.randn(1, 4, 8, 8), torch.tensor([1])
    with (
        apply(dit, REUSE) as session,
        pytest.warns(RuntimeWarning, match="no timesteps yet"),
        torch.no_grad(),
    ):
        for t in timesteps.timesteps:
            dit.transformer(x, t[None], class_labels=labels)
    assert not session.stats.forecast


@pytest.mark.filterwarnings("ignore:cachesmith")
def test_threads_on_one_transformer(dit: Pipeline) -> None:
    """Each with a scheduler of its own: the one that the policy is for is right, the other uncached."""
    other, pictures = own(dit), dict[str, Any]()
    plain = sample_dit(other, 3, 20)
    with apply(dit, REUSE):
        cached = sample_dit(dit, 0, 20)
    with apply(dit, REUSE):
        jobs = {"ours": lambda: sample_dit(dit, 0, 20), "theirs": lambda: sample_dit(other, 3, 20)}
        at_once(jobs, pictures)
    assert np.array_equal(pictures["theirs"], plain) and np.array_equal(pictures["ours"], cached)


@pytest.mark.filterwarnings("ignore:cachesmith")
@pytest.mark.parametrize("change", ["casting", "offloading", "accelerate"])
def test_threads_on_weights_that_are_changed_for_a_call_take_turns(dit: Pipeline, change: str) -> None:
    """A call of another thread would find weights in 8 bits, or on another device, in the middle of its own."""
    if change == "casting":
        dit.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    elif change == "offloading":
        cpu = torch.device("cpu")
        diffusers.hooks.apply_group_offloading(dit.transformer, cpu, cpu, "leaf_level")
    else:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module  # type: ignore[import-untyped]

        add_hook_to_module(dit.transformer.proj_out_2, AlignDevicesHook(execution_device="cpu"))
    other, pictures, inside = own(dit), dict[str, Any](), list[bool]()
    plain = sample_dit(other, 3, 8)

    def elsewhere(*_: Any) -> None:
        """In the middle of our first call another thread begins one, and is not let in before ours is over."""
        if not threads:
            entered = threading.Event()

            def seen(*_: Any) -> None:
                if threading.current_thread() in threads:
                    entered.set()

            handle = dit.transformer.transformer_blocks[0].register_forward_pre_hook(seen)
            threads.append(threading.Thread(target=lambda: pictures.update(theirs=sample_dit(other, 3, 8))))
            threads[0].start()
            inside.append(entered.wait(0.3))
            handle.remove()

    threads: list[threading.Thread] = []
    with apply(dit, REUSE):
        cached = sample_dit(dit, 0, 8)
        dit.transformer.transformer_blocks[1].register_forward_hook(elsewhere)
        assert np.array_equal(sample_dit(dit, 0, 8), cached)
        threads[0].join()
    assert inside == [False] and np.array_equal(pictures["theirs"], plain)


def at_once(jobs: dict[str, Callable[[], Any]], results: dict[str, Any]) -> None:
    threads = [threading.Thread(target=lambda n=n, j=j: results.update({n: j()})) for n, j in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_workers_share_weights_and_nothing_else(dit: Pipeline) -> None:
    chosen, seeds = policy(), range(3)
    expected = []
    for seed in seeds:
        with apply(dit, chosen):
            expected.append(sample_dit(dit, seed))
    workers = [cachesmith.replicate(dit) for _ in seeds]
    for worker in workers:
        assert all(
            a is b for a, b in zip(dit.transformer.parameters(), worker.transformer.parameters(), strict=True)
        )
        assert worker.transformer is not dit.transformer and worker.scheduler is not dit.scheduler
    pictures = dict[str, Any]()

    def work(seed: int) -> Any:
        with apply(workers[seed], chosen):
            return [sample_dit(workers[seed], seed) for _ in range(3)]

    at_once({str(seed): lambda seed=seed: work(seed) for seed in seeds}, pictures)  # type: ignore[misc]
    for seed in seeds:
        assert all(np.array_equal(picture, expected[seed]) for picture in pictures[str(seed)])


def test_a_worker_made_inside_a_context_is_not_under_the_policy(dit: Pipeline) -> None:
    expected = sample_dit(dit)
    with apply(dit, REUSE):
        worker = cachesmith.replicate(dit)
        assert np.array_equal(sample_dit(worker), expected)
    assert not any("forward" in vars(module) for module in worker.transformer.modules())


def test_hooks_that_move_weights_are_not_shared(flux: Pipeline) -> None:
    flux.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(PolicyError, match="workers cannot share"):
        cachesmith.replicate(flux)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_the_transformer_is_its_own(dit: Pipeline, duplicate: Callable[[Any], Any]) -> None:
    expected = sample_dit(tiny_dit(1))
    with apply(dit, REUSE) as session:
        sample_dit(dit)
        other = tiny_dit(1)
        other.transformer = duplicate(dit.transformer)
        other.transformer.load_state_dict(tiny_dit(1).transformer.state_dict())
        counted = dict(session.stats.computed)
        assert np.array_equal(sample_dit(other), expected) and session.stats.computed == counted
        with apply(other, REUSE) as own_session:
            sample_dit(other)
    assert own_session.stats.forecast["stack"] > 0 and np.array_equal(sample_dit(other), expected)


def test_a_replaced_transformer_is_refused(dit: Pipeline) -> None:
    with pytest.raises(PolicyError, match="transformer was replaced"), apply(dit, REUSE):
        dit.transformer = tiny_dit(1).transformer
        sample_dit(dit)


def test_a_pipeline_of_which_everything_was_replaced_is_refused_until_it_is_disabled(dit: Pipeline) -> None:
    """Nothing that it calls is ours any more, but for itself."""
    other = tiny_dit(1)
    other.vae = dit.vae
    expected = sample_dit(other)
    cachesmith.enable(dit, REUSE)
    dit.transformer, dit.scheduler = other.transformer, other.scheduler
    with pytest.raises(PolicyError, match="transformer was replaced"):
        sample_dit(dit)
    cachesmith.disable(dit)
    assert "progress_bar" not in vars(dit) and np.array_equal(sample_dit(dit), expected)


def test_a_worker_of_an_enabled_pipeline_is_heard_by_nobody(dit: Pipeline) -> None:
    cachesmith.enable(dit, REUSE)
    worker = cachesmith.replicate(dit)
    assert not {"progress_bar", "step"} & {*vars(worker), *vars(worker.scheduler)}
    dit.transformer = tiny_dit(1).transformer
    sample_dit(worker)
    cachesmith.disable(dit)


def test_another_thread_while_the_modulated_input_is_looked_at(flux: Pipeline) -> None:
    """TeaCache's signal leaves the first block in its middle; others that call that block at this moment do not."""
    other, found = copy.copy(flux), list[Any]()
    other.scheduler = type(flux.scheduler).from_config(flux.scheduler.config)
    expected = sample_flux(other)
    norm = flux.transformer.transformer_blocks[0].norm1

    def elsewhere(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread() and not found:
            found.append(None)
            at_once({"other": lambda: found.append(sample_flux(other))}, {})

    with warnings.catch_warnings(), apply(flux, preset("teacache")):
        warnings.simplefilter("ignore")
        handle = norm.register_forward_hook(elsewhere)
        sample_flux(flux)
        handle.remove()
    assert np.array_equal(found[1], expected)


def test_a_session_does_not_grow(dit: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from cachesmith.runtime import stats

    monkeypatch.setattr(stats, "_KEPT", 100)
    held: list[int] = []
    with apply(dit, REUSE) as session:
        for _ in range(60):
            sample_dit(dit, steps=8, labels=(1,))
            held.append(len(session.stats.trace) + len(session.stats._executed))
    assert max(held) == held[-1] or held[-1] <= 100 + 8 + stats.KEPT_RUNS
    assert session.stats.nfc == 1.0 and len(session.stats.runs) == stats.KEPT_RUNS
    assert set(map(float, session.stats.runs.popitem()[1].values())) == {1.0}
    runs = [entry.run for entry in session.stats.trace]
    assert all(runs.count(run) == 8 for run in set(runs))
