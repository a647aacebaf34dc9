from pathlib import Path

import pytest
from tests.commands.shop import Cli, Shop, fails, succeeds

from cachesmith.policies import load


def test_another_action_is_another_file(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    before, out = load(shop.policy), tmp_path / "new" / "strict.policy.safetensors"
    result = cli("edit", shop.policy, "--mismatch", "size=error", "--mismatch", "dtype = disable", "-o", out)
    edited = load(out)
    assert edited.id in succeeds(result) and edited.id != before.id
    assert (edited.document.mismatch.size, edited.document.mismatch.dtype) == ("error", "disable")
    assert edited.document.model_copy(update={"mismatch": before.document.mismatch}) == before.document
    assert load(shop.policy).id == before.id


def test_advice_of_an_error_can_be_followed(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    strict, lax, picture = (tmp_path / n for n in ("a.policy.safetensors", "b.policy.safetensors", "x.png"))
    succeeds(cli("edit", shop.policy, "--mismatch", "guidance=error", "-o", strict))
    command = ("run", shop.model, "--class-label", 3, "--guidance-scale", 9, "--out", picture, "--policy")
    fails(cli(*command, strict), "--mismatch guidance=warn")
    succeeds(cli("edit", strict, "--mismatch", "guidance=warn", "-o", lax))
    assert "guidance scale of 1.5, but this is 9" in cli(*command, lax).stderr and picture.is_file()


def test_another_name(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "a.policy.safetensors"
    succeeds(cli("edit", shop.policy, "--name", "other", "-o", out))
    assert load(out).document.name == "other"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "say what to change"),
        (("--mismatch", "sise=error"), "sise=error"),
        (("--mismatch", "size"), "KEY=ACTION"),
        (("--mismatch", "size=refuse"), "'refuse' is no action"),
        (("--mismatch", "dtype=remap"), "only steps and sigmas"),
        (("--name", "a/b"), "name"),
    ],
)
def test_what_cannot_be_changed(
    cli: Cli, shop: Shop, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "a.policy.safetensors"
    fails(cli("edit", shop.policy, *options, "-o", out), expected)
    assert not out.exists()
