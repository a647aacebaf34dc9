"""SGLang's DPCache schedules: published ones read, the same forecasts, and files its server's rules accept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import sample_flux, tiny_flux

from cachesmith.policies import (
    Fixed,
    Lagrange,
    Policy,
    PolicyError,
    Profile,
    Segments,
    Stack,
    decode,
    encode,
    preset,
)
from cachesmith.policies.convert import export_profile, import_settings
from cachesmith.policies.convert.final_feature import forecasting, lines
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.policy import unbound
from cachesmith.policies.schedule import computed_steps
from cachesmith.runtime import apply

PUBLISHED = Path(__file__).parent / "published"
FORMAT = "sglang-dpcache"
K20 = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 17, 20, 23, 27, 31, 34, 36, 38, 39]


def published(name: str = "sglang-K20") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    return values


def line(mask: str) -> Policy:
    return unbound(
        Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=Forecaster(rows=Lagrange(order=1))), {}
    )


def accepted(schedule: dict[str, Any]) -> bool:
    """What SGLang's server asks of a file, written down once more from its code."""
    steps, request, full = schedule["full_steps"], schedule["request"], schedule["full_steps"]
    total, lead = request["num_inference_steps"], schedule["mandatory_full_steps"]
    jumps = [b - a for a, b in zip(full, [*full[1:], total], strict=True)]
    return all(
        (
            schedule["schema"] == "sglang-dpcache-schedule-v2",
            schedule["predictor"] == published()["predictor"],
            schedule["objective"] == published()["objective"],
            isinstance(schedule["source_commit"], str) and schedule["source_commit"],
            len(schedule["calibration"]["manifest_sha256"]) == 64,
            schedule["calibration"]["num_samples"] >= 0,
            math.isfinite(schedule["calibrated_cost"]),
            set(request) == set(published()["request"]),
            len(request["timesteps"]) == total and len(request["sigmas"]) == total + 1,
            request["dtype"] == "bfloat16",
            lead == list(range(len(lead))) and len(lead) >= 2 and steps[: len(lead)] == lead,
            schedule["num_full_steps"] == len(steps) and steps == sorted(set(steps)) and steps[-1] < total,
            not schedule["force_last_full"] or steps[-1] == total - 1,
            schedule["max_gap"] is None or max(jumps) <= schedule["max_gap"],
        )
    )


def test_the_published_schedules_are_read() -> None:
    policy = import_settings(published(), FORMAT).policy
    profile, sampler = policy.profile(), policy.document.sampler
    assert isinstance(profile.gate, Fixed) and profile.units == Stack()
    assert computed_steps(profile.gate.mask) == K20
    assert sampler is not None and sampler.steps == 40 and sampler.guidance == "none"
    assert sampler.sigmas == tuple(published()["request"]["sigmas"][:40])
    uniform = import_settings(published("sglang-uniform-K12"), FORMAT).policy.profile().gate
    assert isinstance(uniform, Fixed) and uniform.mask.count("C") == 12
    assert decode(encode(policy)) == policy


def test_what_the_server_compares_and_a_policy_does_not_is_told() -> None:
    (note,) = import_settings(published(), FORMAT).notes
    for said in (
        "QwenImage21PipelineConfig",
        "790c9263",
        "height 1024",
        "attention_backend torch_sdpa",
        "bfloat16",
    ):
        assert said in note


@pytest.mark.parametrize("name", ["sglang-K20", "sglang-uniform-K12"])
def test_there_and_back_again(name: str) -> None:
    original = published(name)
    values, notes = export_profile(import_settings(original, FORMAT).policy, FORMAT, like=original)
    assert accepted(values) and accepted(original)
    same = ("schema", "predictor", "objective", "request", "full_steps", "num_full_steps")
    assert {key: values[key] for key in same} == {key: original[key] for key in same}
    assert set(values) - set(original) <= {"schedule_method"} and set(original) <= set(values)
    assert values["max_gap"] <= original["max_gap"] and "calibrated_cost" in notes[0] and len(notes) == 1
    assert json.loads(json.dumps(values)) == values


def test_forecasts_are_those_of_sglang() -> None:
    """The line through what the blocks put out, not through what they add: seen on the blocks' own outputs."""
    mask, steps = "CCFFCFCFFF", 10
    profile, arrays = forecasting(mask, lines(mask, "test"))
    pipe, features = tiny_flux(), list[torch.Tensor]()
    handle = pipe.transformer.norm_out.register_forward_pre_hook(
        lambda _, given: features.append(given[0].clone())
    )
    with apply(pipe, unbound(profile, arrays)) as session:
        sample_flux(pipe, steps=steps)
    handle.remove()
    assert not session.stats.fallbacks and len(features) == steps
    computed = computed_steps(mask)
    for step in (s for s in range(steps) if mask[s] == "F"):
        before, last = [c for c in computed if c < step][-2:]
        slope = (features[last] - features[before]) / (last - before)
        expected = features[last] + slope * (step - last)
        assert torch.allclose(features[step], expected, atol=1e-5)
        reused = features[last] - features[step]
        assert reused.abs().max() > 1e-4, "the test would pass for plain reuse"


def test_a_line_through_residuals_is_exported_and_told() -> None:
    values, notes = export_profile(line("CCFF" * 10), FORMAT, like=published())
    assert accepted(values) and any("add to their input" in note for note in notes)
    assert values["mandatory_full_steps"] == [0, 1] and values["max_gap"] == 3


def test_other_forecasters_need_the_order_to_be_said() -> None:
    policy = preset("taylorseer-lite", interval=4, order=2)
    with pytest.raises(PolicyError, match="--order 1"):
        export_profile(policy, FORMAT, steps=40, like=published())
    values, notes = export_profile(policy, FORMAT, steps=40, order=1, like=published())
    assert accepted(values) and any("left out" in note for note in notes)


@pytest.mark.parametrize(
    ("policy", "changes", "said"),
    [
        (line("CCFF" * 10), {"like": None}, "--like FILE"),
        (line("CCFF" * 10), {"order": 2}, "leave --order 2 out"),
        (line("CFFF" * 10), {}, "compute steps 0 and 1"),
        (line("CCFF" * 5), {}, "takes 40 steps"),
        (line("CCFF" * 10), {"like": {"request": {"pipeline": "x"}}}, "checkpoint"),
        (line("CCFF" * 10), {"like": [1]}, "mapping"),
        (preset("taylorseer", order=1), {"steps": 40}, "all blocks together"),
    ],
)
def test_what_cannot_be_exported_is_named(policy: Policy, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        export_profile(policy, FORMAT, **({"like": published()} | changes))


def test_a_schedule_for_other_noise_levels_is_told() -> None:
    like = published()
    policy = import_settings(like, FORMAT).policy
    like["request"]["sigmas"] = [s / 2 for s in like["request"]["sigmas"]]
    like["request"]["scheduler"] = "UniPCMultistepScheduler"
    _, notes = export_profile(policy, FORMAT, like=like)
    assert any("noise levels" in note for note in notes) and any("UniPC" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "sglang-dpcache-schedule-v1"}, "schema"),
        ({"predictor": {"name": "cubic"}}, "predictor"),
        ({"full_steps": [0, 2, 1]}, "full_steps"),
        ({"full_steps": [0, 2, *K20[3:]], "num_full_steps": 19}, "mandatory"),
        ({"num_full_steps": 3}, "num_full_steps"),
        ({"max_gap": 3}, "max_gap"),
        ({"force_last_full": True, "full_steps": K20[:-1], "num_full_steps": 19}, "last step"),
        ({"calibration": {"manifest_sha256": "x", "num_samples": 1}}, "manifest_sha256"),
        ({"extra": 1}, "extra"),
        ({"calibrated_cost": float("nan")}, "calibrated_cost"),
    ],
)
def test_what_cannot_be_imported_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        import_settings(published() | changes, FORMAT)


def test_a_request_is_read_whole() -> None:
    for field, value in (("sigmas", [1.0]), ("dtype", "float16"), ("height", 0), ("quality", 3)):
        schedule = published()
        schedule["request"][field] = value
        with pytest.raises(PolicyError, match=field):
            import_settings(schedule, FORMAT)
    with pytest.raises(PolicyError, match="--num-inference-steps"):
        import_settings(published(), FORMAT, 30)


def test_guidance_binds() -> None:
    schedule = published()
    schedule["request"] |= {"do_classifier_free_guidance": True, "guidance_scale": 4.0}
    sampler = import_settings(schedule, FORMAT).policy.document.sampler
    assert sampler is not None and sampler.guidance == "sequential" and sampler.guidance_range == (4.0, 4.0)


def test_segments_are_refused() -> None:
    profile = Profile(units=Segments(starts=(0, 2)), gate=Fixed(mask="CC" * 20))
    with pytest.raises(PolicyError, match="segment"):
        export_profile(unbound(profile, {}), FORMAT, like=published())
