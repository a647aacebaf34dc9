import json
from pathlib import Path

import pytest
import yaml
from tests.commands.shop import Cli, Shop, fails, succeeds

from cachesmith.policies import Fixed, load


def test_a_policy_becomes_cache_dits_yaml_and_a_policy_again(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cache.yaml"
    result = cli("convert", shop.policy, "--to", "cache-dit", "--profile", "balanced", "--out", out)
    assert "saved" in succeeds(result) and "note: cache-dit always computes the first block" in result.stderr
    assert yaml.safe_load(out.read_text())["cache_config"]["num_inference_steps"] == 10
    again = tmp_path / "again.policy.safetensors"
    succeeds(cli("convert", out, "--from", "cache-dit", "--out", again))
    gate, original = load(again).profile().gate, load(shop.policy).profile("balanced").gate
    assert isinstance(gate, Fixed) and isinstance(original, Fixed) and gate.mask == original.mask


def test_an_imported_policy_runs(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    schedule, out, picture = (tmp_path / n for n in ("s.json", "s.policy.safetensors", "x.png"))
    schedule.write_text(json.dumps({"attn1": [1, 0] * 5, "ff": [1, 1, 0, 0, 0] * 2}))
    succeeds(cli("convert", schedule, "--from", "smoothcache", "--out", out))
    succeeds(cli("run", shop.model, "--policy", out, "--class-label", 3, "--steps", 10, "--out", picture))
    assert picture.is_file()


def test_a_config_for_diffusers(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    fields, policy, out = (tmp_path / n for n in ("a.json", "a.policy.safetensors", "b.json"))
    fields.write_text(json.dumps({"cache_interval": 4}))
    succeeds(cli("convert", fields, "--from", "diffusers-taylorseer", "--steps", 20, "--out", policy))
    succeeds(cli("convert", policy, "--to", "diffusers-taylorseer", "--out", out))
    assert json.loads(out.read_text())["cache_interval"] == 4


def test_a_profile_of_the_stack_for_diffusers_lite_mode(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    command = ("convert", shop.policy, "--to", "diffusers-taylorseer", "--profile", "fast")
    result = cli(*command, "--out", tmp_path / "lite.json")
    assert "saved" in succeeds(result) and "note: lite mode forecasts the last projection" in result.stderr
    assert json.loads((tmp_path / "lite.json").read_text())["use_lite_mode"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "x.yaml"), ("--from FORMAT",)),
        (("--from", "mask", "--to", "cache-dit", "--out", "x.yaml"), ("--from FORMAT",)),
        (("--to", "nonsense", "--out", "x.yaml"), ("no format 'nonsense'", "cache-dit")),
        (("--from", "mask", "--out", "x.yaml"), ("change --out",)),
        (("--from", "mask", "--out", "x.policy.safetensors"), ("cannot read the settings",)),
        (("--to", "diffusers-taylorseer", "--out", "x.json", "--profile", "none"), ("no profile 'none'",)),
    ],
)
def test_what_is_refused(
    cli: Cli,
    shop: Shop,
    arguments: tuple[str, ...],
    said: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(cli("convert", shop.policy, *arguments), *said)
    assert not list(tmp_path.iterdir())


PUBLISHED = Path(__file__).parents[1] / "policies" / "convert" / "published"


def test_sglangs_schedule_becomes_a_policy_and_a_schedule_again(cli: Cli, tmp_path: Path) -> None:
    source, policy, out = (
        PUBLISHED / "sglang-K20.json",
        tmp_path / "k.policy.safetensors",
        tmp_path / "k.json",
    )
    result = cli("convert", source, "--from", "sglang-dpcache", "--out", policy)
    assert "saved" in succeeds(result) and "note: a policy keeps the scheduler's class" in result.stderr
    succeeds(cli("convert", policy, "--to", "sglang-dpcache", "--like", source, "--out", out))
    assert json.loads(out.read_text())["full_steps"] == json.loads(source.read_text())["full_steps"]
    out.unlink()
    fails(cli("convert", policy, "--to", "sglang-dpcache", "--out", out), "--like FILE")
    assert not out.exists()


def test_a_bitstring_of_cached_steps(cli: Cli, tmp_path: Path) -> None:
    source, policy = PUBLISHED / "flux_k37_budcache.txt", tmp_path / "k.policy.safetensors"
    fails(cli("convert", source, "--from", "mask", "--out", policy), "--from cached-mask")
    succeeds(cli("convert", source, "--from", "cached-mask", "--out", policy))
    succeeds(cli("convert", policy, "--to", "cached-mask", "--out", tmp_path / "again.txt"))
    assert (tmp_path / "again.txt").read_bytes() == source.read_bytes()


def test_l2ps_matrix_with_a_mask(cli: Cli, tmp_path: Path) -> None:
    matrix, policy = tmp_path / "weight.txt", tmp_path / "l2p.policy.safetensors"
    matrix.write_text("[[0.7, 0.0, 0.0], [0.05, 0.9, 0.0], [0.06, -0.2, 1.1]]")
    succeeds(cli("convert", matrix, "--from", "l2p", "--mask", "CCFF", "--out", policy))
    assert load(policy).arrays["final/weights"].shape == (1, 4, 2)
