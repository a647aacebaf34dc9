"""Steps, branches and runs are told right by every scheduler, guidance and entry point."""

import copy
import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux

from cachesmith.policies import Fixed, Stack, preset
from cachesmith.runtime import Clock, Tick, apply
from cachesmith.runtime.hooks import clock as clock_module
from cachesmith.runtime.models.sampler import noise_levels

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FOR_DIT: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    ("DDPMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FOR_FLUX: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("UniPCMultistepScheduler", FLOW),
    ("DPMSolverMultistepScheduler", FLOW | {"use_dynamic_shifting": True, "time_shift_type": "exponential"}),
]


def visited(session: Any, branch: str = "0") -> list[int]:
    return [t.step for t in session.stats.trace if t.branch == branch]


@pytest.mark.parametrize(("name", "config"), FOR_DIT)
@pytest.mark.parametrize("axis", ["step", "sigma", "log-snr"])
def test_dit_steps(name: str, config: dict[str, Any], axis: str) -> None:
    pipe = tiny_dit(scheduler=getattr(diffusers, name)(**config))
    with apply(pipe, policy(axis=axis)) as session:
        images = sample_dit(pipe, steps=9)
    assert visited(session) == list(range(len(pipe.scheduler.timesteps)))
    assert session.stats.forecast["stack"] > 3 and not session.stats.fallbacks
    assert np.isfinite(images).all()
    levels = noise_levels(pipe.scheduler)
    assert np.isfinite(levels).all() and list(levels) == sorted(levels, reverse=True)


@pytest.mark.parametrize(("name", "config"), FOR_FLUX)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_steps(name: str, config: dict[str, Any], dtype: torch.dtype) -> None:
    pipe = tiny_flux(scheduler=getattr(diffusers, name)(**config)).to(dtype)
    with apply(pipe, policy(axis="log-snr")) as session:
        sample_flux(pipe, steps=20)
    assert visited(session, "cond") == list(range(20)) and not session.stats.fallbacks


def loop(pipe: Pipeline, scheduler: Any, start: int = 0, steps: int = 10, calls: int = 1) -> torch.Tensor:
    """The smallest pipeline: `calls` passes a step, entered at `start` as image-to-image does."""
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps[start:]:
        scaled = scheduler.scale_model_input(x, t)
        labels = [torch.tensor([label]) for label in range(calls)]
        with torch.no_grad():
            outputs = [pipe.transformer(scaled, t[None], class_labels=label).sample for label in labels]
        x = scheduler.step(outputs[0] + sum(0.1 * (o - outputs[0]) for o in outputs), t, x).prev_sample
    return x


@pytest.mark.parametrize("start", [0, 3, 6])
def test_a_start_in_the_middle(dit: Pipeline, start: int) -> None:
    with apply(dit, policy(Stack(), Fixed(mask="CFCFFFCFCF"))) as session:
        loop(dit, dit.scheduler, start)
    assert visited(session) == list(range(start, 10)) and not session.stats.fallbacks
    assert session.stats.computed["stack"] + session.stats.forecast["stack"] == 10 - start


def test_an_interval_counts_from_the_start(dit: Pipeline) -> None:
    with apply(dit, preset("fora", interval=3)) as session:
        loop(dit, dit.scheduler, start=4)
    assert [t.decision for t in session.stats.trace] == list("CFFCFF")


@pytest.mark.parametrize("start", [0, 4])
def test_second_order_entered_in_the_middle(dit: Pipeline, start: int) -> None:
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    with apply(dit.transformer, policy(axis="sigma"), scheduler=scheduler) as session:
        loop(dit, scheduler, start=start)
    assert visited(session) == list(range(start, 19))


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_unnamed_branches_are_told_apart_by_order(dit: Pipeline, branches: int) -> None:
    with apply(dit, preset("taylorseer-lite")) as session:
        guided = loop(dit, dit.scheduler, calls=branches)
    assert {t.branch for t in session.stats.trace} == {str(b) for b in range(branches)}
    assert all(visited(session, str(b)) == list(range(10)) for b in range(branches))
    with apply(dit, preset("taylorseer-lite")):
        assert torch.equal(loop(dit, dit.scheduler, calls=branches), guided)


def test_branches_never_share_state(dit: Pipeline) -> None:
    """A second branch that is ignored leaves the first one's pictures as they are."""
    with apply(dit, preset("rfc")):
        alone = loop(dit, dit.scheduler)
    with apply(dit, preset("rfc")):
        dit.scheduler.set_timesteps(10)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in dit.scheduler.timesteps:
            with torch.no_grad():
                first = dit.transformer(x, t[None], class_labels=torch.tensor([0])).sample
                dit.transformer(x * 3, t[None], class_labels=torch.tensor([5]))
            x = dit.scheduler.step(first, t, x).prev_sample
    assert torch.equal(x, alone)


def test_sequential_guidance_by_cache_context(flux: Pipeline) -> None:
    with apply(flux, preset("rfc")) as session:
        sample_flux(flux, true_cfg_scale=2.0)
    assert visited(session, "cond") == visited(session, "uncond") == list(range(10))
    assert {t.branch for t in session.stats.trace} == {"cond", "uncond"}


def test_two_calls_in_one_cache_context(flux: Pipeline) -> None:
    clock = Clock()
    with clock.follow(flux.scheduler):
        flux.scheduler.set_timesteps(10)
        clock.context = "cond"
        assert [clock.tick(1.0).branch for _ in range(2)] == ["cond", "cond.1"]


def test_batched_guidance(dit: Pipeline) -> None:
    expected = sample_dit(dit, guidance_scale=3.0)
    with apply(dit, preset("uncached")):
        assert np.array_equal(sample_dit(dit, guidance_scale=3.0), expected)
    with apply(dit, preset("taylorseer-lite", interval=2)) as session:
        sample_dit(dit, guidance_scale=3.0)
    assert {t.branch for t in session.stats.trace} == {"0"}


def test_an_unknown_timestep_computes(dit: Pipeline) -> None:
    dit.scheduler.set_timesteps(10)
    x, labels = torch.randn(1, 4, 8, 8), torch.tensor([1])
    expected = dit.transformer(x, torch.tensor([7]), class_labels=labels).sample
    with (
        apply(dit, preset("fora")) as session,
        pytest.warns(RuntimeWarning, match="not on the scheduler's list"),
    ):
        for _ in range(3):
            got = dit.transformer(x, torch.tensor([7]), class_labels=labels).sample
            assert torch.equal(got, expected)
    assert sum(session.stats.fallbacks.values()) == 3 and not session.stats.forecast


def test_going_back_in_time_is_a_new_run(dit: Pipeline) -> None:
    """A loop of its own that never calls `set_timesteps` again."""
    dit.scheduler.set_timesteps(10)
    x, labels = torch.randn(1, 4, 8, 8), torch.tensor([1])
    with apply(dit, preset("fora")) as session, torch.no_grad():
        for _ in range(2):
            for t in dit.scheduler.timesteps:
                dit.transformer(x, t[None], class_labels=labels)
    assert [t.decision for t in session.stats.trace] == list("CFFFFCFFFF") * 2


def test_the_largest_timestep_of_many_is_the_steps(dit: Pipeline) -> None:
    """Image-to-video holds some tokens clean, at timestep 0."""
    clock = Clock()
    with clock.follow(dit.scheduler):
        dit.scheduler.set_timesteps(10)
        assert clock.tick(torch.tensor([[0.0, 800.0], [0.0, 800.0]])).step == 1


def test_a_copied_scheduler_keeps_its_own_time(dit: Pipeline) -> None:
    """Pipelines with a second modality step a deep copy of the scheduler."""
    dit.scheduler.set_timesteps(10)
    clock = Clock()
    with clock.follow(dit.scheduler):
        copied = copy.deepcopy(dit.scheduler)
        copied.set_timesteps(5)
        assert len(dit.scheduler.timesteps) == 10 and len(copied.timesteps) == 5
        run = clock.run
        copied.set_timesteps(10)
        assert clock.run == run
        dit.scheduler.set_timesteps(10)
        assert clock.run == run + 1


def test_the_followed_scheduler_keeps_its_signature(flux: Pipeline) -> None:
    """Pipelines ask for it before they pass sigmas or a generator."""
    plain = [inspect.signature(getattr(flux.scheduler, name)) for name in ("step", "set_timesteps")]
    with Clock().follow(flux.scheduler):
        assert [inspect.signature(getattr(flux.scheduler, n)) for n in ("step", "set_timesteps")] == plain


def test_a_sampler_that_never_steps_is_read_at_every_call(dit: Pipeline) -> None:
    class There(torch.Tensor):
        """A value that says it is elsewhere."""

        device = torch.device("cuda")

    clock = Clock()
    with clock.follow(dit.scheduler):
        dit.scheduler.set_timesteps(30)
        ticks = [clock.tick(t.as_subclass(There)) for t in dit.scheduler.timesteps]
    assert [tick.step for tick in ticks] == [*range(30)]
    assert {tick.branch for tick in ticks} == {"0"}


def test_on_an_accelerator_only_the_first_step_is_read(dit: Pipeline) -> None:
    """A meta tensor has a device and no value, so reading it would fail."""
    clock, there = Clock(), torch.empty(1, device="meta")
    with clock.follow(dit.scheduler):
        dit.scheduler.set_timesteps(10)
        places: list[list[Tick]] = []
        for t in dit.scheduler.timesteps[3:]:
            places.append([clock.tick(t if not places else there) for _ in range(2)])
            dit.scheduler.step(torch.zeros(1), t, torch.zeros(1))
        assert [[tick.step for tick in ticks] for ticks in places] == [[i, i] for i in range(3, 10)]
        assert {tuple(tick.branch for tick in ticks) for ticks in places} == {("0", "1")}
        assert clock.tick(there).step is None


FORMS: dict[str, Any] = {
    "t": lambda scheduler, t, sigma: t,
    "t / 1000": lambda scheduler, t, sigma: t / 1000,
    "1 - t / 1000": lambda scheduler, t, sigma: (1000 - t) / 1000,
    "sigma": lambda scheduler, t, sigma: sigma,
    "sigma / (1 + sigma), as Cosmos 2": lambda scheduler, t, sigma: sigma / (1 + sigma),
    "log(sigma) / 4": lambda scheduler, t, sigma: sigma.log() / 4,
    "none of them": lambda scheduler, t, sigma: (t + 17) ** 0.5,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("afar", [False, True])
def test_a_step_is_the_nth_timestep_in_whatever_form(
    form: str, dtype: torch.dtype, afar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls a step, and two `scheduler.step`, as Cosmos makes."""
    monkeypatch.setattr(clock_module, "_afar", lambda _: afar)
    scheduler, clock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Clock()
    with clock.follow(scheduler):
        for run in range(2):
            scheduler.set_timesteps(20 + run)
            places = []
            for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
                given = FORMS[form](scheduler, t, sigma).expand(2).to(dtype)
                places.append([clock.tick(given) for _ in range(2)])
                for _ in range(2):
                    scheduler.step(torch.zeros(1), t, torch.zeros(1))
                    scheduler._step_index -= 1
                scheduler._step_index += 1
            assert [[tick.step for tick in ticks] for ticks in places] == [[i, i] for i in range(20 + run)]
            assert {tuple(tick.branch for tick in ticks) for ticks in places} == {("0", "1")}


@pytest.mark.parametrize("form", ["t", "t / 1000", "1 - t / 1000", "sigma / (1 + sigma), as Cosmos 2"])
@pytest.mark.parametrize("told", [True, False])
def test_a_start_in_the_middle_in_whatever_form(form: str, told: bool) -> None:
    """Pipelines tell the scheduler where they begin; where they do not, the value has to."""
    scheduler, clock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Clock()
    with clock.follow(scheduler):
        scheduler.set_timesteps(20)
        if told:
            scheduler.set_begin_index(7)
        steps = []
        for t, sigma in [*zip(scheduler.timesteps, scheduler.sigmas, strict=False)][7:]:
            steps.append(clock.tick(FORMS[form](scheduler, t, sigma).expand(2)).step)
            scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert steps == [*range(7, 20)]


def test_a_start_that_could_be_two_is_not_known_until_the_scheduler_tells() -> None:
    """0.8 is t / 1000 of one step, and 1 - t / 1000 of another."""
    scheduler, clock = diffusers.FlowMatchEulerDiscreteScheduler(), Clock()
    with clock.follow(scheduler):
        scheduler.set_timesteps(sigmas=np.array([1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1]))
        steps = []
        for t in scheduler.timesteps[2:]:
            steps.append(clock.tick(t / 1000).step)
            scheduler._step_index = None
            scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert steps == [None, 3, 4, 5, 6]


@pytest.mark.parametrize("clean", [0.0, 0.1])
def test_tokens_that_are_held_clean(clean: float) -> None:
    scheduler, clock = diffusers.FlowMatchEulerDiscreteScheduler(), Clock()
    with clock.follow(scheduler):
        scheduler.set_timesteps(20)
        steps = []
        for t in scheduler.timesteps:
            steps.append(clock.tick(torch.tensor([[clean, float(t) / 1000]])).step)
            scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert steps == [*range(20)]


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_second_order_on_an_accelerator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "_afar", lambda _: True)
    scheduler, clock = getattr(diffusers, name)(), Clock()
    with clock.follow(scheduler):
        for _ in range(2):
            scheduler.set_timesteps(10)
            steps = []
            for t in scheduler.timesteps:
                steps += [clock.tick(t[None]).step for _ in range(2)]
                scheduler.step(torch.zeros(1), t, torch.ones(1))
            assert steps == [step for step in range(len(scheduler.timesteps)) for _ in range(2)]
