import json
from pathlib import Path
from typing import Any

import pytest
from tests.commands.shop import GOLDEN, STEPS, Cli, Shop, fails, succeeds, tiny_policy

from cachesmith.policies import Calibration, Mismatch, Policy, Quality, load, save
from cachesmith.sampling.heldout import heldout
from cachesmith.sampling.requests import Request, completed, requests_digest, split
from cachesmith.sampling.requests.request import FileRow


def test_validate_holds(cli: Cli, shop: Shop) -> None:
    result = cli("validate", shop.model, "--policy", shop.policy, "--prompts", shop.prompts, "--samples", 2)
    assert succeeds(result).count("holds") == 2


def test_validate_json(cli: Cli, shop: Shop) -> None:
    result = cli(
        "validate", shop.model, "--policy", shop.policy, "--prompts", shop.prompts, "--samples", 2, "--seed", 5,
        "--profile", "fast", "--min-psnr", 99, "--json",
    )  # fmt: skip
    assert result.exit_code == 3
    judged = json.loads(result.stdout)
    assert (judged["steps"], judged["seeds"]) == (STEPS, [5, 6])
    assert list(judged["profiles"]) == ["fast"]
    assert judged["profiles"]["fast"]["problem"] == "below --min-psnr 99"
    assert judged["profiles"]["fast"]["measured"]["samples"] == 2


def test_validate_compares_with_what_is_stored(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    quality = Quality(samples=2, psnr=99.5, psnr_low=99.0, psnr_high=100.0, ssim=1.0, latent_error=0.0)
    path = tmp_path / "proud.policy.safetensors"
    save(tiny_policy(shop.pipe, quality=quality), path)
    result = cli("validate", shop.model, "--policy", path, "--prompts", shop.prompts, "--samples", 2)
    assert result.exit_code == 3
    assert "fails: more than 1 dB below the stored 99.00" in result.stdout and "holds" in result.stdout


@pytest.mark.parametrize(("stored", "code"), [(4.0, 3), (4.45, 0), (6.0, 0)])
def test_validate_compares_the_computations_with_what_is_stored(
    cli: Cli, shop: Shop, tmp_path: Path, stored: float, code: int
) -> None:
    """The tiny policy computes 5 of its 10 steps."""
    policy = tiny_policy(shop.pipe)
    slow = policy.profile("balanced").model_copy(update={"nfc": stored})
    path = tmp_path / "slow.policy.safetensors"
    save(Policy(policy.document.model_copy(update={"profiles": {"slow": slow}})), path)
    result = cli("validate", shop.model, "--policy", path, "--prompts", shop.prompts, "--samples", 1)
    assert result.exit_code == code
    assert ("fails: computes 5.00 steps instead of the stored 4.00" in result.stdout) == bool(code)


def test_validate_does_not_pass_what_did_not_run(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    document = load(shop.policy).document
    assert document.model is not None
    other = document.model.model_copy(update={"config_hash": "0" * 64})
    off = document.model_copy(update={"model": other, "mismatch": Mismatch(config="disable")})
    path = tmp_path / "off.policy.safetensors"
    save(Policy(off), path)
    result = cli("validate", shop.model, "--policy", path, "--prompts", shop.prompts, "--samples", 1)
    assert result.exit_code == 3 and "nothing was forecast" in result.stdout
    assert "caching is off" in result.stderr


def test_validate_refuses_another_model(cli: Cli, shop: Shop) -> None:
    fails(
        cli("validate", shop.model, "--policy", GOLDEN, "--prompts", shop.prompts, "--samples", 1),
        "transformer configuration",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ('{"class_labels": 3', "cannot read prompts"),
        ("a bag", "takes no 'prompt'"),
        ('{"class_labels": [3]}', "class label [3] is not valid"),
        ('{"class_labels": 3, "generator": 0}', "use --seed"),
        ('{"guidance_scale": 3}', "DiTPipeline needs 'class_labels'"),
    ],
)
def test_prompts_are_checked_first(cli: Cli, shop: Shop, tmp_path: Path, text: str, said: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(text)
    fails(cli("validate", shop.model, "--policy", shop.policy, "--prompts", prompts), said)


def test_heldout_samples_are_those_of_the_calibration(shop: Shop, tmp_path: Path) -> None:
    prompts: list[Any] = [{"class_labels": label} for label in range(20)]
    parts = split(prompts, 4, 3, 5, seed=7)
    record = Calibration(
        fitting_prompts=requests_digest([*parts.fitting, *parts.validation]),
        heldout_prompts=requests_digest(parts.heldout),
        fitting_size=7, heldout_size=5, fitting_seeds=(), heldout_seeds=tuple(r.seed for r in parts.heldout),
        dtype="float32", versions={}, study="study",
    )  # fmt: skip
    policy = Policy(load(shop.policy).document.model_copy(update={"calibration": record}))
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text("\n".join(map(json.dumps, prompts)))
    other.write_text('{"class_labels": 99}')
    assert heldout(policy, same, None, None) == parts.heldout
    assert heldout(policy, other, 2, None) == tuple(
        Request({"class_labels": 99}, r.seed) for r in parts.heldout[:2]
    )
    assert [r.seed for r in heldout(policy, same, 2, 40)] == [40, 41]


def test_heldout_samples_of_prompts_with_options_for_all(shop: Shop, tmp_path: Path) -> None:
    """Whether calibration was given `--height` or not, it is never the fitted prompts that are measured."""
    texts = [f"a bag, number {i}" for i in range(20)]
    listed, tall = tmp_path / "prompts.txt", {"height": 48}
    listed.write_text("\n".join(texts))
    for given in ({}, tall):
        parts = split(completed(texts, given), 4, 3, 5, seed=7)
        record = Calibration(
            fitting_prompts="0" * 64, heldout_prompts=requests_digest(parts.heldout), fitting_size=7, heldout_size=5,
            fitting_seeds=(), heldout_seeds=tuple(r.seed for r in parts.heldout), dtype="float32", versions={},
            study="study",
        )  # fmt: skip
        policy = Policy(load(shop.policy).document.model_copy(update={"calibration": record}))
        found = heldout(policy, listed, None, None, tall)
        assert [r.arguments for r in found] == [{**r.arguments, **tall} for r in parts.heldout]


def test_an_option_for_all_prompts_leaves_what_a_prompt_says() -> None:
    row = FileRow({"prompt": "a bag", "height": 64})
    row.where = "prompts.txt, line 1"
    whole, text = completed([row, "a shoe"], {"height": 32, "width": 32})
    assert whole == {"prompt": "a bag", "height": 64, "width": 32}
    assert isinstance(whole, FileRow) and whole.where == row.where
    assert text == {"prompt": "a shoe", "height": 32, "width": 32}


def test_what_was_fitted_by_hand_is_measured_on_other_seeds(shop: Shop, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('{"class_labels": 3}')
    assert min(r.seed for r in heldout(None, prompts, None, None)) >= 1_000_000


def test_the_worst_sample_is_shown(cli: Cli, shop: Shop) -> None:
    words = ("validate", shop.model, "--policy", shop.policy, "--prompts", shop.prompts, "--samples", 3)
    judged = json.loads(succeeds(cli(*words, "--json")))["profiles"]["balanced"]["measured"]
    assert judged["metrics"]["psnr"]["worst"] <= judged["psnr"] and 0 <= judged["above_floor"] <= 1
    worst = judged["metrics"]["psnr"]["worst"]
    shown = succeeds(cli(*words))
    assert "worst" in shown and f"{worst:.2f}" in shown
