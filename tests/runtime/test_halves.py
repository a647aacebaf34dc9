"""One half of guidance follows the other."""

import warnings
from typing import Any, Literal

import diffusers
import numpy as np
import pytest
import torch
from tests.runtime.zoo import ZOO
from tests.tiny import Pipeline, policy, sample_dit, sample_flux
from torch import Tensor, nn

from cachesmith.policies import Fixed, Interval, Lagrange, PolicyError, Relational, Reuse, Stack
from cachesmith.runtime import apply
from cachesmith.runtime.halves import Half

HALVES: list[Literal["first", "second"]] = ["first", "second"]
STEPS = 12


def halved(mask: str, follower: Literal["first", "second"] = "second", row: Any = None) -> Any:
    return policy(Stack(follower=follower), Fixed(mask=mask), row or Reuse())


def stack_outputs(dit: Pipeline, seen: list[Tensor]) -> Any:
    return dit.transformer.transformer_blocks[-1].register_forward_hook(
        lambda *args: seen.append(args[-1].clone())
    )


@pytest.mark.parametrize("follower", HALVES)
def test_a_run_that_computes_everything_is_untouched(
    dit: Pipeline, follower: Literal["first", "second"]
) -> None:
    plain = sample_dit(dit)
    with apply(dit, halved("C" * STEPS, follower)) as session:
        assert np.array_equal(sample_dit(dit), plain)
    assert session.stats.nfc == STEPS


@pytest.mark.parametrize("follower", HALVES)
def test_half_a_step_computes_one_half_and_adds_the_difference(
    dit: Pipeline, follower: Literal["first", "second"]
) -> None:
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
    assert plan is not None and plan.bytes({"hidden_states": (2, 16, 32)}, 4) == session.stats.cache_bytes


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


def test_without_guidance_nothing_follows(dit: Pipeline) -> None:
    with apply(dit, policy(Stack(), Fixed(mask="CCFFCFFFFFFF"), Lagrange(order=1))):
        expected = sample_dit(dit, guidance_scale=1.0)
    with apply(dit, halved("CHFFCFFFFFFF", row=Lagrange(order=1))) as session:
        assert np.allclose(sample_dit(dit, guidance_scale=1.0), expected, atol=1e-5)
    assert session.stats.nfc == 3
    with (
        apply(dit, halved("CH" + "F" * 10, "first")),
        pytest.raises(PolicyError, match="not the same samples"),
    ):
        sample_dit(dit, guidance_scale=1.0)


def test_halves_that_are_calls_of_their_own(flux: Pipeline) -> None:
    options: dict[str, Any] = {"true_cfg_scale": 2.0, "batch": 2}
    plain = sample_flux(flux, **options)
    with apply(flux, halved("C" * 10)):
        assert np.array_equal(sample_flux(flux, **options), plain)
    with apply(flux, policy(Stack(), Interval(interval=3), Lagrange(order=1))):
        expected = sample_flux(flux, **options)
    with apply(flux, policy(Stack(follower="second"), Interval(interval=3), Lagrange(order=1))) as session:
        assert np.allclose(sample_flux(flux, **options), expected, atol=1e-4)
    assert session.stats.nfc == 4
    with apply(flux, halved("CHFHCFHFFF", row=Lagrange(order=1))) as session:
        assert not np.allclose(sample_flux(flux, **options), plain, atol=1e-4)
    assert session.stats.computed == {"stack": 5, "guidance": 2} and session.stats.nfc == 3.5
    assert session.stats.forecast == {"stack": 5, "guidance": 8} and not session.stats.fallbacks
    plan, shape = session.plan, {"hidden_states": (2, 64, 32), "encoder_hidden_states": (2, 3, 32)}
    assert plan is not None and session.stats.cache_bytes == plan.bytes(shape, 4)


def test_calls_of_which_the_first_would_follow_are_refused(flux: Pipeline) -> None:
    with (
        apply(flux, halved("CH" + "F" * 8, "first")),
        pytest.raises(PolicyError, match="not the same samples"),
    ):
        sample_flux(flux, true_cfg_scale=2.0)


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
    half = Half(slice(2), 4, lambda computed: computed)
    half.check((torch.zeros(2, 3),))
    with pytest.raises(PolicyError, match="between its blocks"):
        half.check((torch.zeros(2, 3), torch.zeros(4, 3)))


def test_what_is_taken_of_an_argument() -> None:
    half = Half(slice(2, None), 4, lambda computed: computed)
    rows = torch.arange(4)
    assert half.take("temb", rows).tolist() == [2, 3]
    assert [t.tolist() for t in half.take("pair", (rows, rows[:3]))] == [[2, 3], [0, 1, 2]]
    assert half.take("kwargs", {"scale": 1.0, "mask": rows})["mask"].tolist() == [2, 3]
    tokens = torch.zeros(4, 6)
    assert half.take("image_rotary_emb", tokens) is tokens
    assert half.take("image_rotary_emb", torch.zeros(4, 3, 6)).shape == (2, 3, 6)


class Doubled(nn.Module):
    """Calls a transformer with every sample twice, and returns it once."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.model(*(_twice(a) for a in args), **{k: _twice(v) for k, v in kwargs.items()})
        if isinstance(result, tuple):
            return result
        first, second = result.sample.chunk(2)
        assert torch.allclose(first, second, atol=1e-5)
        return type(result)(sample=result.sample[:1])


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", [name for name in ZOO if name != "ZImageTransformer2DModel"])
def test_every_model_can_be_computed_by_half(name: str) -> None:
    tiny = ZOO[name]
    model, scheduler = tiny.build(name), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    doubled = Doubled(model)

    def sample() -> Tensor:
        scheduler.set_timesteps(8)
        x = torch.randn(tiny.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(tiny.call(doubled, x, t), t, x).prev_sample
        return x

    plain = sample()
    with apply(model, halved("CHHHHHHH"), scheduler=scheduler) as session:
        assert torch.allclose(sample(), plain, atol=1e-3 * float(plain.abs().max()))
    assert session.stats.nfc == 4.5
    assert not session.stats.fallbacks
