"""Calibrating a pipeline with two experts: one schedule over the run, a part of the policy for each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experts import STEPS, expert, tiny_wan

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.calibrate.closed_loop.axes import RAW
from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, line_weights, of_policy
from cachesmith.calibrate.fitting import fit_method
from cachesmith.calibrate.schedules.search import (
    RunShape,
    first_shapes,
    schedule_of,
    typical_schedule,
    usual_schedule,
)
from cachesmith.policies import Policy, PolicyError, computations, load
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests


def prompts(count: int, guided: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(count):
        embeds = torch.randn(1, 8, 32, generator=generator)
        size = {"height": 16, "width": 16, "num_frames": 5}
        negative = {"negative_prompt_embeds": -embeds} if guided else {}
        found.append({"prompt_embeds": embeds, **negative, **size})
    return found


def settings(work: Path, **changes: Any) -> CalibrationConfig:
    quick: dict[str, Any] = {
        "steps": STEPS, "budget": 10.0, "speedups": (2.0,), "fitting": 4, "heldout": 2, "batch": 4,
        "guidance_scale": 1.0,
    }  # fmt: skip
    return CalibrationConfig(work=work, **(quick | changes))


@pytest.mark.parametrize("guidance", [1.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_both_experts_are_calibrated(tmp_path: Path, guidance: float) -> None:
    pipe, out = tiny_wan(), tmp_path / "wan.policy.safetensors"
    pipe.transformer_2.proj_out.weight.data *= 2
    report = tmp_path / "report" if guidance > 1 else None
    given = settings(tmp_path / "work", out=out, guidance_scale=guidance, report=report)
    found = calibrate(pipe, prompts(12, guidance > 1), given)
    policy = load(out)
    assert found.policy == policy
    profile, (name,) = policy.profile(), policy.document.profiles
    high, low = profile.gate.mask, profile.denoisers["transformer_2"].gate.mask  # type: ignore[union-attr]
    assert high[6:] == "-" * 6 and low[:6] == "-" * 6 and low[6] == "C"
    assert profile.nfc == computations(high) + computations(low) <= 6
    assert report is None or f'"{name}"' in (report / "report.json").read_text()
    assert policy.document.models.keys() == {"transformer_2"} and profile.quality is not None
    common = {"guidance_scale": guidance}
    with apply(pipe, policy) as session:
        Renderer(pipe, STEPS, 2, **common)(requests(prompts(2, guidance > 1), 2, 9))
    assert session.stats.nfc == profile.nfc and not session.stats.fallbacks


@pytest.mark.slow
def test_weights_are_better_than_lines(tmp_path: Path) -> None:
    pipe = tiny_wan()
    found = calibrate(
        pipe, prompts(24), settings(tmp_path, fitting=16, heldout=4, batch=8, budget=60.0)
    ).policy
    known = of_policy(found, "2x")
    assert known is not None and known[0].starts == (0, 6)
    schedule, _ = known
    plain = as_policy(
        schedule,
        line_weights(schedule, 24, torch.device("cpu")),
        "line",
        (("transformer",), ("transformer_2",)),
    )
    held = requests(prompts(4), 4, 99)
    renderer = Renderer(pipe, STEPS, 4, guidance_scale=1.0)
    reference = renderer(held).images

    def error(policy: Policy) -> float:
        with apply(pipe, policy):
            return float((renderer(held).images - reference).square().mean())

    assert error(found) < error(plain)


@pytest.mark.slow
def test_one_expert_for_all_steps(tmp_path: Path) -> None:
    policy = calibrate(tiny_wan(None), prompts(12), settings(tmp_path)).policy
    assert not policy.document.models and not policy.profile().denoisers
    assert "-" not in policy.profile().gate.mask  # type: ignore[union-attr]


def test_the_space_rfc_is_for_one_denoiser(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is for one denoiser"):
        calibrate(tiny_wan(), prompts(12), settings(tmp_path, space="rfc"))


def test_denoisers_that_call_one_another_are_refused(tmp_path: Path) -> None:
    """The second one asks the first before it returns."""
    pipe, given = tiny_wan(), {}
    pipe.transformer_2.register_forward_pre_hook(lambda *args: given.update(args[-1]), with_kwargs=True)
    pipe.transformer_2.proj_out.register_forward_pre_hook(lambda *_: pipe.transformer(**given) and None)
    with pytest.raises(PolicyError, match="transformer and transformer_2 of WanPipeline call one another"):
        calibrate(pipe, prompts(12), settings(tmp_path))


def test_denoisers_of_other_channels_are_refused(tmp_path: Path) -> None:
    pipe = tiny_wan()
    pipe.register_modules(transformer_2=expert(attention_head_dim=16))
    with pytest.raises(PolicyError, match="blocks of transformer and transformer_2 differ in their channels"):
        calibrate(pipe, prompts(12), settings(tmp_path))


def test_published_methods_are_for_one_denoiser() -> None:
    with pytest.raises(PolicyError, match="transformer, transformer_2; use cachesmith calibrate"):
        fit_method(tiny_wan(), "magcache", requests(prompts(1), 1, 0), STEPS, 1, {}, {})


@pytest.mark.slow
def test_goes_on_from_an_earlier_policy(tmp_path: Path) -> None:
    first = calibrate(tiny_wan(), prompts(12), settings(tmp_path / "a")).policy
    again = calibrate(tiny_wan(), prompts(12), settings(tmp_path / "b", earlier=first)).policy
    assert again.document.calibration is not None
    assert any("from the earlier policy" in line for line in again.document.calibration.fitted)
    both = [p.profile().denoisers["transformer_2"].gate for p in (first, again)]
    assert both[0] == both[1]


def test_schedule_and_weights_return_from_the_policy() -> None:
    schedule = Schedule("CCFFCFCFFF", None, (0, 4))
    rows = {s: torch.rand(1, RAW, 5) for s, letter in enumerate(schedule.mask) if letter != "C"}
    found = of_policy(as_policy(schedule, rows, "x", (("transformer",), ("transformer_2",))), "default")
    assert found is not None and found[0] == schedule and found[1].keys() == rows.keys()
    assert all(torch.equal(found[1][step], rows[step]) for step in rows)


def test_no_weights_reach_over_the_boundary() -> None:
    schedule = Schedule("CCFFCFCFFF", None, (0, 4))
    table = line_weights(schedule, 1, torch.device("cpu"))
    assert np.allclose(table[5][0, :3, 0], [1, 0, 0])  # one own output: it is reused
    assert np.allclose(table[7][0, :3, 0], [1.5, -0.5, 0])


@pytest.mark.parametrize("follower", [None, "later"])
@pytest.mark.parametrize("starts, steps", [((0,), 20), ((0, 13), 20), ((0, 4), 40), ((0, 2, 30), 50)])
@pytest.mark.parametrize("budget", [5, 7.5, 12])
def test_every_denoiser_begins_with_a_computed_step(
    follower: Any, starts: tuple[int, ...], steps: int, budget: float
) -> None:
    run = RunShape(steps, follower, starts)
    tried = [usual_schedule(budget, run), typical_schedule(int(budget), run)]
    for edge in (0.15, 0.85):
        trial = first_shapes(budget, run)[-1] | {f"share-{i}": edge for i in range(len(starts) - 1)}
        tried.append(schedule_of(Fixed(trial), budget, run))
    for schedule in tried:
        assert len(schedule.mask) == steps and computations(schedule.mask) <= budget
        if follower is None:
            assert computations(schedule.mask) == int(budget)
        assert all(schedule.mask[start] == "C" for start in starts)


class Fixed:
    """A trial whose parameters are given."""

    def __init__(self, parameters: dict[str, float]):
        self.parameters = parameters

    def suggest_float(self, name: str, low: float, high: float) -> float:
        assert low <= self.parameters[name] <= high
        return self.parameters[name]
