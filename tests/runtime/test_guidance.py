"""One half of guidance follows the other."""

import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux
from torch import Tensor, nn

from cachesmith.policies import Fixed, Follower, Interval, Lagrange, PolicyError, Relational, Reuse, Stack
from cachesmith.runtime import ComputeRows, UseOutput, apply
from cachesmith.runtime.hooks.rows import check_rows, take_rows
from cachesmith.runtime.plan.cache_size import cache_bytes
from cachesmith.runtime.runs.sampling_run import SamplingRun
from cachesmith.runtime.stats import NON_FINITE, NOT_WHOLE, UNGUIDED, UNLED
from cachesmith.zoo import KNOWN, NO_ROW, ZOO

HALVES: list[Follower] = ["first", "second"]
NOT_HALVED = {
    "Cosmos3OmniTransformer": "one sample a call",
    "ErnieImageTransformer2DModel": "tokens before samples",
    "HiDreamImageTransformer2DModel": "samples are the second axis of its text",
    "JoyImageEditPlusTransformer3DModel": "a list of sizes for every sample",
    "MiniMaxH3Transformer3DModel": "one sample a call",
    "QwenImage21Transformer2DModel": "modulations for twice the rows",
    "TransformerTemporalModel": "rows are frames",
    "WanAnimate2Transformer3DModel": "one sample a call",
    "ZImageTransformer2DModel": "lists of samples",
}
"""Classes whose calls cannot be made for twice the rows by repeating tensors, or whose rows are not samples."""
HALVED = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in KNOWN))
    for name in ZOO
    if name not in NOT_HALVED and name not in NO_ROW
]
STEPS = 12


def halved(mask: str, follower: Follower = "second", row: Any = None) -> Any:
    return policy(Stack(follower=follower), Fixed(mask=mask), row or Reuse())


def stack_outputs(dit: Pipeline, seen: list[Tensor]) -> Any:
    return dit.transformer.transformer_blocks[-1].register_forward_hook(
        lambda *args: seen.append(args[-1].clone())
    )


@pytest.mark.parametrize("follower", HALVES)
def test_a_run_that_computes_everything_is_untouched(dit: Pipeline, follower: Follower) -> None:
    plain = sample_dit(dit)
    with apply(dit, halved("C" * STEPS, follower)) as session:
        assert np.array_equal(sample_dit(dit), plain)
    assert session.stats.nfc == STEPS


@pytest.mark.parametrize("follower", HALVES)
def test_half_a_step_computes_one_half_and_adds_the_difference(dit: Pipeline, follower: Follower) -> None:
    blocks = dit.transformer.transformer_blocks
    entered: list[Tensor] = []
    rows: list[int] = []
    blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0].clone()), with_kwargs=True
    )
    blocks[1].attn1.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    whole: list[Tensor] = []
    handle = stack_outputs(dit, whole)
    x = torch.randn(2, 4, 8, 8)
    labels = torch.tensor([1, 2, 1000, 1000])

    def step(k: int) -> None:
        t = dit.scheduler.timesteps[k]
        with torch.no_grad():
            dit.transformer(torch.cat([x, x]) * (1 + k), timestep=t.expand(4), class_labels=labels)
        dit.scheduler.step(x, t, x)

    dit.scheduler.set_timesteps(STEPS)
    step(0)
    step(1)
    handle.remove()
    made: list[Tensor] = []
    stack_outputs(dit, made)
    dit.scheduler.set_timesteps(STEPS)
    del entered[:], rows[:]
    with apply(dit.transformer, halved("CH" + "F" * 10, follower), scheduler=dit.scheduler) as session:
        step(0)
        step(1)
    assert rows == [4, 2] and session.stats.nfc == 1.5
    lead, other = (slice(2, 4), slice(0, 2)) if follower == "first" else (slice(0, 2), slice(2, 4))
    assert torch.allclose(made[1][lead], whole[1][lead], atol=1e-6)
    added = [output - start for output, start in zip(whole, entered, strict=True)]
    expected = entered[1][other] + added[1][lead] + added[0][other] - added[0][lead]
    assert torch.allclose(made[1][other], expected, atol=1e-5)
    assert torch.equal(made[0], whole[0])


def test_halves_are_counted_and_remembered_by_half(dit: Pipeline) -> None:
    with apply(dit, halved("CHFHCFFHFFFF", row=Lagrange(order=1))) as session:
        sample_dit(dit)
    assert session.stats.nfc == 3.5
    assert session.stats.computed == {"stack": 5, "guidance": 2}
    assert session.stats.forecast == {"stack": 7, "guidance": 10}
    assert not session.stats.fallbacks
    # two outputs of 2 samples, for each half
    assert session.stats.cache_bytes == 2 * 2 * (2 * 16 * 32 * 4)
    plan = session.plan
    assert (
        plan is not None and cache_bytes(plan, {"hidden_states": (2, 16, 32)}, 4) == session.stats.cache_bytes
    )


def test_a_follower_with_the_same_schedule_needs_no_half_steps(dit: Pipeline) -> None:
    plain = policy(Stack(), Interval(interval=3), Lagrange(order=1))
    with apply(dit, plain):
        expected = sample_dit(dit)
    with apply(dit, policy(Stack(follower="second"), Interval(interval=3), Lagrange(order=1))) as session:
        assert np.allclose(sample_dit(dit), expected, atol=1e-4)
    assert session.stats.nfc == 4


def test_samples_of_a_batch_do_not_know_each_other(dit: Pipeline) -> None:
    with apply(dit, halved("CHFHCFFHFFFF", row=Lagrange(order=1))):
        both, alone = sample_dit(dit, labels=(1, 2)), sample_dit(dit, labels=(1,))
    assert np.allclose(both[0], alone[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:cachesmith computed")
def test_a_batch_that_is_not_guided_is_computed(dit: Pipeline) -> None:
    plain = sample_dit(dit, guidance_scale=1.0)
    alone = sample_dit(dit, labels=(1,), guidance_scale=1.0)
    for follower in HALVES:
        with apply(dit, halved("CH" + "F" * 10, follower)) as session:
            assert np.array_equal(sample_dit(dit, guidance_scale=1.0), plain)
            assert np.array_equal(sample_dit(dit, labels=(1,), guidance_scale=1.0), alone)
        assert session.stats.nfc == STEPS and session.stats.fallbacks == {UNGUIDED: 2 * STEPS}


@pytest.mark.filterwarnings("ignore:cachesmith computed")
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_further_call_of_other_rows_is_computed(dit: Pipeline, rows: int) -> None:
    """As SD3's skip-layer guidance makes one."""
    dit.scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 4, 8, 8)

    def call(latents: Tensor, t: Tensor) -> Tensor:
        labels = torch.arange(len(latents))
        out: Tensor = dit.transformer(latents, timestep=t.expand(len(latents)), class_labels=labels).sample
        return out

    with torch.no_grad(), apply(dit.transformer, halved("CH" + "F" * 10), scheduler=dit.scheduler) as session:
        for t in dit.scheduler.timesteps[:3]:
            call(torch.cat([x, x]), t)
            extra = call(x[:1].expand(rows, -1, -1, -1), t)
            dit.scheduler.step(x, t, x)
    with torch.no_grad():
        assert torch.equal(extra, call(x[:1].expand(rows, -1, -1, -1), t))
    assert session.stats.fallbacks == {UNGUIDED: 3} and session.stats.forecast["guidance"] == 2


def test_calls_of_which_the_later_follows(flux: Pipeline) -> None:
    options: dict[str, Any] = {"true_cfg_scale": 2.0, "batch": 2}
    plain = sample_flux(flux, **options)
    with apply(flux, halved("C" * 10, "later")):
        assert np.array_equal(sample_flux(flux, **options), plain)
    with apply(flux, policy(Stack(), Interval(interval=3), Lagrange(order=1))):
        expected = sample_flux(flux, **options)
    with apply(flux, policy(Stack(follower="later"), Interval(interval=3), Lagrange(order=1))) as session:
        assert np.allclose(sample_flux(flux, **options), expected, atol=1e-4)
    assert session.stats.nfc == 4
    with apply(flux, halved("CHFHCFHFFF", "later", Lagrange(order=1))) as session:
        assert not np.allclose(sample_flux(flux, **options), plain, atol=1e-4)
    assert session.stats.computed == {"stack": 5, "guidance": 2} and session.stats.nfc == 3.5
    assert session.stats.forecast == {"stack": 5, "guidance": 8} and not session.stats.fallbacks
    plan, shape = session.plan, {"hidden_states": (2, 64, 32), "encoder_hidden_states": (2, 3, 32)}
    assert plan is not None and session.stats.cache_bytes == cache_bytes(plan, shape, 4)


@pytest.mark.filterwarnings("ignore:cachesmith computed")
@pytest.mark.parametrize("place", [3, 4], ids=["computed", "forecast"])
def test_calls_after_one_that_left_a_block_out_are_computed(dit: Pipeline, place: int) -> None:
    """Nothing is known of what its blocks added, and what the calls after it add is no difference from that."""
    blocks, x = dit.transformer.transformer_blocks, torch.randn(2, 4, 8, 8)

    def call(t: Tensor, label: int, left_out: bool = False) -> Tensor:
        dit.transformer.transformer_blocks = blocks[1:] if left_out else blocks
        labels = torch.tensor([label, label])
        out: Tensor = dit.transformer(x, timestep=t.expand(2), class_labels=labels).sample
        dit.transformer.transformer_blocks = blocks
        return out

    def follow() -> list[Tensor]:
        dit.scheduler.set_timesteps(STEPS)
        made = []
        for step, t in enumerate(dit.scheduler.timesteps[:6]):
            call(t, 1, left_out=step == place)
            made.append(call(t, 1000))
            dit.scheduler.step(x, t, x)
        return made

    with torch.no_grad():
        plain = follow()
        with apply(dit.transformer, halved("CFFCFF" + "F" * 6, "later"), scheduler=dit.scheduler) as session:
            made = follow()
    assert torch.equal(made[place], plain[place])
    assert session.stats.fallbacks[NOT_WHOLE] == session.stats.fallbacks[UNLED] == 1
    computed = {0, 3, place, place + 1}
    assert [torch.equal(a, b) for a, b in zip(made, plain, strict=True)] == [s in computed for s in range(6)]


def test_two_samples_of_one_noise_are_no_halves_where_later_calls_follow(flux: Pipeline) -> None:
    """What would be taken for a guided batch, if it had to be guessed."""
    options: dict[str, Any] = {"true_cfg_scale": 2.0}
    latents = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    with apply(flux, halved("CHFHCFHFFF", "later", Lagrange(order=1))):
        alone = sample_flux(flux, latents=latents, **options)
        twice = sample_flux(flux, latents=latents.repeat(2, 1, 1), batch=2, **options)
    assert np.allclose(twice[1], alone[0], atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*")
def test_later_calls_with_captions_of_other_lengths_are_computed() -> None:
    name = "Lumina2Transformer2DModel"
    tiny, scheduler = ZOO[name], diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = tiny.build(name)

    def sample() -> Tensor:
        scheduler.set_timesteps(8)
        x = torch.randn(tiny.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in scheduler.timesteps:
                parts = [
                    model(x, 1 - t[None] / 1000, torch.ones(1, n, 32), torch.ones(1, n).bool()).sample
                    for n in (5, 3)
                ]
                x = scheduler.step(-(1.5 * parts[0] - 0.5 * parts[1]), t, x).prev_sample
        return x

    plain = sample()
    with apply(model, halved("CHCHCHHH", "later"), scheduler=scheduler) as session:
        assert torch.allclose(sample(), plain, atol=1e-5)
    assert session.stats.nfc == 8 and session.stats.fallbacks


@pytest.mark.parametrize("follower", ["second", "later"])
def test_the_budget_is_checked_before_anything_is_cached(
    dit: Pipeline, flux: Pipeline, follower: Follower
) -> None:
    def sample(**options: Any) -> Any:
        in_batch = follower == "second"
        pipe, made = (dit, halved("CHFFCF" + "F" * 6)) if in_batch else (flux, halved("CHFFCFFFFF", "later"))
        with apply(pipe, made, **options) as session:
            sample_dit(pipe) if in_batch else sample_flux(pipe, true_cfg_scale=2.0)
        return session.stats.cache_bytes

    enough = sample()
    assert sample(memory_budget=enough) == enough
    with pytest.raises(PolicyError, match="budget"):
        sample(memory_budget=enough - 1)


@pytest.mark.filterwarnings("ignore:cachesmith computed")
@pytest.mark.parametrize("mask", ["C" + "F" * 11, "CH" + "F" * 10])
def test_a_difference_that_is_not_finite_is_computed(dit: Pipeline, monkeypatch: Any, mask: str) -> None:
    plain = sample_dit(dit)
    forecast = SamplingRun._forecast

    def broken(self: Any, branch: Any, unit: Any, *rest: Any) -> Any:
        answer = forecast(self, branch, unit, *rest)
        if unit.name == "guidance" and isinstance(answer, UseOutput):
            return UseOutput(tuple(t * torch.nan for t in answer.output))
        return answer

    monkeypatch.setattr(SamplingRun, "_forecast", broken)
    with apply(dit, halved(mask)) as session:
        assert np.array_equal(sample_dit(dit), plain)
    assert session.stats.fallbacks[NON_FINITE] > 0


def test_an_unknown_timestep_computes_everything(dit: Pipeline) -> None:
    dit.scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 4, 8, 8)
    x[1] = x[0]
    arguments = {"timestep": torch.tensor([3, 3]), "class_labels": torch.tensor([1, 1000])}
    with torch.no_grad():
        plain = dit.transformer(x, **arguments).sample
        with (
            warnings.catch_warnings(),
            apply(dit.transformer, halved("CH" + "F" * 10), scheduler=dit.scheduler),
        ):
            warnings.simplefilter("ignore")
            assert torch.equal(dit.transformer(x, **arguments).sample, plain)


def test_half_steps_and_followers_come_together() -> None:
    with pytest.raises(PolicyError, match="no half follows the other"):
        policy(Stack(), Fixed(mask="CHF"))
    with pytest.raises(PolicyError, match="decides while sampling"):
        policy(Stack(follower="first"), Relational(thresholds=(0.1,)))


def test_work_between_the_blocks_is_refused() -> None:
    part = ComputeRows(slice(2), 4, lambda computed: computed)
    check_rows(part, (torch.zeros(2, 3),))
    with pytest.raises(PolicyError, match="a block was given"):
        check_rows(part, (torch.zeros(2, 3), torch.zeros(4, 3)))


def doubled(name: str) -> tuple[Any, Any, Callable[[], Tensor]]:
    """A model, its sampler, and what samples it with every latent twice."""
    tiny = ZOO[name]
    model, scheduler = tiny.build(name), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    def sample() -> Tensor:
        scheduler.set_timesteps(8)
        x = torch.randn(tiny.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(tiny.velocity(Doubled(model), x, t), t, x).prev_sample
        return x

    return model, scheduler, sample


def test_tokens_before_samples_are_refused() -> None:
    model, scheduler, sample = doubled("ErnieImageTransformer2DModel")
    with (
        apply(model, halved("CHHHHHHH"), scheduler=scheduler),
        pytest.raises(PolicyError, match="tokens before samples"),
    ):
        sample()


def test_what_is_taken_of_an_argument() -> None:
    part = ComputeRows(slice(2, None), 4, lambda computed: computed)
    rows = torch.arange(4)
    assert take_rows(part, "temb", rows).tolist() == [2, 3]
    assert [t.tolist() for t in take_rows(part, "pair", (rows, rows[:3]))] == [[2, 3], [0, 1, 2]]
    assert take_rows(part, "kwargs", {"scale": 1.0, "mask": rows})["mask"].tolist() == [2, 3]
    tokens = torch.zeros(4, 6)
    assert take_rows(part, "image_rotary_emb", tokens) is tokens
    assert take_rows(part, "image_rotary_emb", torch.zeros(4, 3, 6)).shape == (2, 3, 6)


class Doubled(nn.Module):
    """Calls a transformer with every sample twice, and returns it once."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.model(*_twice(args), **_twice(kwargs))
        return (
            result if isinstance(result, tuple) else type(result)(**{k: _once(v) for k, v in result.items()})
        )


def _twice(value: Any) -> Any:
    match value:
        case Tensor():
            return torch.cat([value, value]) if value.shape[:1] == (1,) else value
        case list() | tuple():
            return type(value)(_twice(item) for item in value)
        case dict():
            return {name: _twice(item) for name, item in value.items()}
        case _:
            return value


def _once(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    first, second = value.chunk(2)
    assert torch.allclose(first, second, atol=1e-5)
    return first


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", HALVED)
def test_every_model_can_be_computed_by_half(name: str) -> None:
    model, scheduler, sample = doubled(name)
    plain = sample()
    with apply(model, halved("CHHHHHHH"), scheduler=scheduler) as session:
        assert torch.allclose(sample(), plain, atol=1e-3 * float(plain.abs().max()))
    assert session.stats.nfc == 4.5
    assert not session.stats.fallbacks


def test_a_transformer_that_works_between_its_blocks_can_be_computed_by_half() -> None:
    """BriaFibo puts every layer of its text encoder into the stream before a block."""
    test_every_model_can_be_computed_by_half("BriaFiboTransformer2DModel")
