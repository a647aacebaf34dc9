from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibrate.trajectory import trajectories
from tests.commands.shop import STEPS, Cli, Shop, fails, succeeds
from tests.tiny_folder import open_tiny, save_tiny

from cachesmith.calibrate.methods import METHODS
from cachesmith.policies import Fixed, Policy, Profile, Stack, load, unbound
from cachesmith.runtime.models.fingerprint import model_key


def fake(renderer: Any, requests: Any, interval: int = 3, labels: Any = None) -> Policy:
    """Looks at real trajectories, like the published methods."""
    assert interval > 0
    steps = {len(outputs) for outputs in trajectories(renderer, requests, Stack()).values()}
    mask = "".join("C" if step % interval == 0 else "F" for step in range(steps.pop()))
    return unbound(Profile(gate=Fixed(mask=mask)))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "fake", fake)


def test_fit_binds_the_policy_and_the_policy_runs(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "new" / "fake.policy.safetensors"
    result = cli(
        "fit", shop.model, "--method", "fake", "--prompts", shop.prompts, "--steps", STEPS, "--samples", 2,
        "--set", "interval=4", "--guidance-scale", 1.5, "--out", out,
    )  # fmt: skip
    assert "saved" in succeeds(result)
    document = load(out).document
    assert document.profiles["default"].gate == Fixed(mask="CFFFCFFFCF") and document.name == "fake"
    assert document.model == model_key(shop.pipe.transformer, shop.pipe)
    sampler = document.sampler
    assert sampler is not None and sampler.steps == STEPS and len(set(sampler.sigmas)) == STEPS
    assert (sampler.guidance, sampler.guidance_range) == ("batched", (1.5, 1.5))
    picture = tmp_path / "x.png"
    run = cli("run", shop.model, "--policy", out, "--class-label", 3, "--out", picture)
    assert picture.is_file() and "warning" not in succeeds(run) + run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "nonsense"), ("no method 'nonsense'", "fake")),
        (("--method", "fake", "--set", "nonsense=3"), ("no option 'nonsense'", "interval, labels")),
        (("--method", "fake", "--set", "interval"), ("KEY=VALUE",)),
        (("--method", "fake", "--set", "interval=1", "--set", "interval=2"), ("once",)),
        (("--method", "fake", "--set", "interval=many"), ("cannot use", "change --set")),
    ],
)
def test_what_is_refused(cli: Cli, shop: Shop, tmp_path: Path, arguments: Any, said: tuple[str, ...]) -> None:
    out = tmp_path / "x.policy.safetensors"
    where = ("--prompts", shop.prompts, "--steps", STEPS, "--samples", 1, "--out", out)
    fails(cli("fit", shop.model, *arguments, *where), *said)
    assert not out.exists()


def test_a_model_that_is_not_finite_is_refused(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    pipe = open_tiny(save_tiny(tmp_path / "model"))
    with torch.no_grad():
        pipe.transformer.proj_out_2.weight[0, 0] = torch.nan
    pipe.save_pretrained(tmp_path / "nan")
    out = tmp_path / "x.policy.safetensors"
    where = ("--prompts", shop.prompts, "--steps", STEPS, "--samples", 1, "--out", out)
    fails(cli("fit", tmp_path / "nan", "--method", "magcache", *where), "not finite", "in float32")
    assert not out.exists()


def test_a_wrong_name_is_refused_before_any_work(cli: Cli, shop: Shop) -> None:
    fails(
        cli("fit", shop.model, "--method", "fake", "--prompts", shop.prompts, "--out", "x.json"),
        "change --out",
    )
