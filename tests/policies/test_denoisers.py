"""Policies for pipelines with several denoisers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies.several import HIGH, LOW, several_document, several_policy

from cachesmith.policies import (
    Document,
    Fixed,
    Interval,
    Policy,
    PolicyError,
    Profile,
    decode,
    denoiser_policy,
    encode,
    load,
    remap,
    unbound,
)
from cachesmith.policies.convert.formats import export_profile


def test_golden_file_with_two_denoisers(golden: Path) -> None:
    file = golden.with_name("v1-denoisers.policy.safetensors")
    policy = several_policy()
    assert load(file) == policy and encode(policy) == file.read_bytes()


def test_a_part_is_a_policy_by_itself() -> None:
    policy = several_policy()
    high, low = denoiser_policy(policy), denoiser_policy(policy, "transformer_2")
    assert high is not None and low is not None
    assert (
        high.document.model == policy.document.model
        and low.document.model == policy.document.models["transformer_2"]
    )
    assert [p.profile().gate for p in (high, low)] == [Fixed(mask=HIGH), Fixed(mask=LOW)]
    assert {len(next(iter(p.arrays.values())).shape) for p in (high, low)} == {4}
    assert set(low.arrays) == {"fast/transformer_2/weights", "fast/transformer_2/ids"}
    assert not high.profile().denoisers and decode(encode(low)) == low


def test_who_a_policy_is_for() -> None:
    free, policy = unbound(Profile(gate=Interval())), several_policy()
    assert denoiser_policy(free, "transformer_2") is free
    assert denoiser_policy(policy, "transformer_3") is None
    bound = Policy(free.document.model_copy(update={"model": policy.document.model}))
    assert denoiser_policy(bound) is bound and denoiser_policy(bound, "transformer_2") is None


def changed(change: Any) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(several_document().model_dump_json())
    change(raw)
    return raw


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: d["profiles"]["fast"].pop("denoisers"), "no field names it"),
        (lambda d: d.pop("models"), "give both the same"),
        (lambda d: d.pop("model"), "binds no first one"),
        (lambda d: d["models"].update(transformer=d["model"]), "main denoiser"),
        (lambda d: part(d).update(gate={"kind": "interval"}), "use the gate `fixed`"),
        (lambda d: part(d)["gate"].update(mask=LOW + "F"), "one letter per step of the whole run"),
        (lambda d: part(d)["gate"].update(mask="---FCCFF"), "pattern"),
        (lambda d: part(d)["gate"].update(mask="--CF-CFF"), "pattern"),
        (lambda d: part(d)["gate"].update(mask="-" * 8), "pattern"),
        (lambda d: part(d).update(units={"kind": "segment", "starts": [0, 35]}), "has 30 blocks"),
        (lambda d: part(d).update(nfc=1.0), "nfc"),
        (lambda d: part(d)["forecaster"]["rows"].update(weights="other"), "not stored"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Any, said: str) -> None:
    raw = changed(change)
    arrays = several_policy().arrays
    with pytest.raises((PolicyError, ValueError), match=said):
        Policy(Document.model_validate_json(json.dumps(raw)), arrays)


def part(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = raw["profiles"]["fast"]["denoisers"]["transformer_2"]
    return found


def test_weights_of_a_part_are_checked() -> None:
    arrays = several_policy().arrays
    arrays["fast/transformer_2/weights"] = np.full((1, 8, 2, 7), np.nan, np.float32)
    with pytest.raises(PolicyError, match=r"denoisers.transformer_2.*finite"):
        Policy(several_document(), arrays)


def test_the_boundary_moves_with_the_noise_levels() -> None:
    old = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1)
    new = (1.0, 0.85, 0.72, 0.6, 0.45, 0.3, 0.15, 0.1, 0.05, 0.02)
    assert remap(LOW, old, old) == LOW and remap(HIGH, old, old) == HIGH
    low = remap(LOW, old, new)
    assert low.count("C") == 2 and low.startswith("--C") and "-" not in low[2:]


def test_other_tools_have_no_several_denoisers() -> None:
    with pytest.raises(PolicyError, match="transformer_2"):
        export_profile(several_policy(), "cached-mask")
