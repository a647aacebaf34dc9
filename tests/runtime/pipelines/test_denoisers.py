"""Pipelines with several denoisers: one session, one clock, every call counted."""

import warnings
from typing import Any

import diffusers
import pytest
import torch
from tests.experts import STEPS, expert, sample, tiny_wan, two_experts
from tests.tiny import Pipeline, policy

from cachesmith.policies import (
    Interval,
    Policy,
    PolicyError,
    Stack,
    Taylor,
    denoiser_policy,
    preset,
)
from cachesmith.runtime import apply
from cachesmith.runtime.models.fingerprint import model_key


@pytest.fixture
def wan() -> Pipeline:
    return tiny_wan()


def count(pipe: Pipeline) -> list[int]:
    """Calls of each expert's blocks."""
    calls = [0, 0]
    for index, part in enumerate((pipe.transformer, pipe.transformer_2)):
        for block in part.blocks:
            block.attn1.to_q.register_forward_hook(lambda *_, i=index: calls.__setitem__(i, calls[i] + 1))
    return calls


@pytest.mark.parametrize(
    "chosen", [preset("uncached"), policy(Stack(), Interval(interval=3)), preset("fora", interval=4)]
)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_both_experts_are_counted(wan: Pipeline, chosen: Policy, guidance: float) -> None:
    calls, branches = count(wan), 2 if guidance > 1 else 1
    with apply(wan, chosen) as session:
        for _ in range(2):
            sample(wan, guidance)
    assert min(calls) > 0 and session.stats.nfc == pytest.approx(sum(calls) / 2 / 2 / branches)
    assert not session.stats.fallbacks
    if chosen.document.name == "test":
        assert session.stats.forecast["stack"] and session.stats.forecast["transformer_2/stack"]


def test_a_policy_for_one_expert_says_that_the_other_is_computed(wan: Pipeline) -> None:
    chosen = policy(Stack(), Interval(interval=3), model=model_key(wan.transformer, wan))
    calls = count(wan)
    with pytest.warns(RuntimeWarning, match="nothing for `transformer_2`"), apply(wan, chosen) as session:
        sample(wan)
    assert session.stats.forecast.keys() == {"stack"}
    assert session.stats.nfc == pytest.approx(sum(calls) / 2 / 2)


def test_nothing_to_forecast_from_across_the_boundary(wan: Pipeline) -> None:
    """The second expert's first step is computed, and pictures do not depend on what was sampled before."""
    with apply(wan, policy(Stack(), Interval(interval=5))) as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        first = sample(wan)
        assert torch.equal(sample(wan), first)
    assert session.stats.cache_bytes > 0
    assert sample(wan).isfinite().all()


def test_a_denoiser_that_is_in_use_elsewhere_leaves_the_others_as_they_were(wan: Pipeline) -> None:
    with apply(wan.transformer_2, policy(), scheduler=wan.scheduler):
        with pytest.raises(PolicyError, match="already runs under a policy"), apply(wan, policy()):
            pass
        assert all("forward" not in vars(module) for module in wan.transformer.modules())
    with apply(wan, policy()):
        pass


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("rows", [None, Taylor(order=1)])
def test_each_expert_follows_its_part(wan: Pipeline, rows: Any, guidance: float) -> None:
    calls, branches = count(wan), 2 if guidance > 1 else 1
    with warnings.catch_warnings(), apply(wan, two_experts(wan, rows)) as session:
        warnings.simplefilter("error")
        first = sample(wan, guidance)
        assert torch.equal(sample(wan, guidance), first)
    assert session.stats.nfc == 5.0 and not session.stats.fallbacks
    assert calls == [2 * 2 * 2 * branches, 3 * 2 * 2 * branches]
    assert session.stats.forecast == {"stack": 4 * 2 * branches, "transformer_2/stack": 3 * 2 * branches}


def test_a_part_is_what_the_expert_follows_alone(wan: Pipeline) -> None:
    """Both parts together draw what each draws with the other expert computed, to the bit at the boundary's latents."""
    whole = two_experts(wan, Taylor(order=1), high="C" * 6 + "-" * 6)
    alone = denoiser_policy(whole, "transformer_2")
    assert alone is not None
    with apply(wan, whole):
        both = sample(wan)
    with apply(wan.transformer_2, alone, scheduler=wan.scheduler):
        assert torch.equal(sample(wan), both)


@pytest.mark.parametrize("ratio, computed", [(0.7, [3, 2]), (0.95, [2, 7])])
def test_a_boundary_that_moved_is_told_and_computed(wan: Pipeline, ratio: float, computed: list[int]) -> None:
    """Later: the first expert has one step more, the second begins at its second. Sooner: the second has four more."""
    chosen, calls = two_experts(wan), count(wan)
    wan.register_to_config(boundary_ratio=ratio)
    with pytest.warns(RuntimeWarning, match="boundary between them moved"), apply(wan, chosen) as session:
        sample(wan)
    assert calls == [2 * 2 * count for count in computed] and session.stats.nfc == sum(computed)


def test_one_expert_for_all_steps_is_computed_where_the_policy_has_the_other(wan: Pipeline) -> None:
    chosen, calls = two_experts(wan), count(wan)
    wan.register_to_config(boundary_ratio=None)
    with pytest.warns(RuntimeWarning, match="boundary between them moved"), apply(wan, chosen) as session:
        sample(wan)
    assert calls == [2 * 2 * (2 + 6), 0] and session.stats.nfc == 8.0


def test_a_pipeline_without_the_second_expert_is_refused(wan: Pipeline) -> None:
    chosen = two_experts(wan)
    wan.transformer_2 = None
    with pytest.raises(PolicyError, match="has no transformer_2"), apply(wan, chosen):
        pass


def test_other_weights_of_the_second_expert_are_told(wan: Pipeline) -> None:
    chosen = two_experts(wan)
    torch.nn.init.normal_(wan.transformer_2.blocks[0].attn1.to_q.weight)
    with pytest.warns(RuntimeWarning, match="made for the weights"), apply(wan, chosen):
        sample(wan)


def test_without_a_boundary_the_main_transformer_is_the_only_one(wan: Pipeline) -> None:
    wan.register_to_config(boundary_ratio=None)
    calls = count(wan)
    with apply(wan, policy(Stack(), Interval(interval=3))) as session:
        sample(wan)
    assert calls[1] == 0 and session.stats.nfc == pytest.approx(calls[0] / 4) and not session.stats.fallbacks


class TwoAtOnce:
    """As Ideogram 4: the other half of guidance is computed by a transformer of its own."""

    def __init__(self) -> None:
        self.transformer, self.unconditional_transformer = expert(), expert()
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def __call__(self) -> torch.Tensor:
        self.scheduler.set_timesteps(STEPS)
        generator = torch.Generator().manual_seed(0)
        x, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 2, 2), (1, 8, 32)))
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                one, other = (
                    part(hidden_states=x, timestep=t[None], encoder_hidden_states=text).sample
                    for part in (self.transformer, self.unconditional_transformer)
                )
                x = self.scheduler.step(other + 2 * (one - other), t, x).prev_sample
        return x


def test_two_denoisers_of_one_step_are_branches_of_guidance() -> None:
    torch.manual_seed(0)
    pipe = TwoAtOnce()
    plain = pipe()
    with apply(pipe, preset("uncached")) as session:
        assert torch.equal(pipe(), plain)
    assert session.stats.nfc == STEPS and set(session.stats.computed.values()) == {STEPS}
    with apply(pipe, policy(Stack(), Interval(interval=3))) as session:
        assert pipe().isfinite().all()
    assert session.stats.nfc == 4 and not session.stats.fallbacks
    assert session.stats.forecast == {"stack": 8, "unconditional_transformer/stack": 8}
