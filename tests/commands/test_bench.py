import json
from pathlib import Path

import pytest
from tests.commands.shop import STEPS, Cli, Shop, fails, picture_size, succeeds

from cachesmith.commands.bench import split_specs


def test_bench_compares(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    table, sheet = tmp_path / "new" / "table.md", tmp_path / "sheet.png"
    result = cli(
        "bench", shop.model, "--policy", shop.policy, "--prompts", shop.prompts, "--samples", 2, "--repeats", 1,
        "--against", "taylorseer:interval=5,order=1,fora", "--against", "rfc:tau=0.1",
        "--json", "--markdown", table, "--sheet", sheet,
    )  # fmt: skip
    facts = json.loads(succeeds(result))
    names = ["uncached", "balanced", "fast", "taylorseer:interval=5,order=1", "fora", "rfc:tau=0.1"]
    assert [row["name"] for row in facts["rows"]] == names
    assert facts["arguments"] == {"guidance_scale": 1.5} and facts["steps"] == STEPS
    latency = facts["rows"][1]["latency"]
    assert latency["calls"] == 1 and latency["p50"] == latency["p90"] == latency["p99"] > 0
    assert latency["pictures_per_hour"] == 3600 * 2 / facts["rows"][1]["seconds"]
    assert "num-inference-steps" not in facts["config"] and "samples: 2" in facts["config"]
    assert facts["rows"][1]["nfc"] == 5.0 and facts["machine"]["threads"]
    assert len(table.read_text().splitlines()) == 2 + len(names)
    assert picture_size(sheet)[1] == (2 * len(names) - 1) * 100 + 4


def test_bench_prints_a_table(cli: Cli, shop: Shop) -> None:
    arguments = ("--prompts", shop.prompts, "--against", "fora", "--samples", 1, "--repeats", 1, "--steps", 8)
    said = succeeds(cli("bench", shop.model, *arguments))
    assert "p99" in said and "pictures/hour" in said
    assert "measured speed-up" in said and "uncached" in said and "fora" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --policy, --against, or both"),
        (["--against", "magic"], "there is no preset 'magic'; choose from"),
        (["--against", "fora:tau=1"], "preset fora has no option 'tau'"),
        (["--against", "fora:interval=0"], "preset fora is not valid"),
        (["--against", "fora", "--sheet", "sheet"], "cannot save a picture"),
    ],
)
def test_bench_refuses(cli: Cli, shop: Shop, arguments: list[str], said: str) -> None:
    fails(cli("bench", shop.model, "--prompts", shop.prompts, *arguments), said)


def test_bench_without_prompts(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    arguments = ("--against", "fora", "--prompts", tmp_path / "none.txt")
    fails(cli("bench", shop.model, *arguments), "cannot read prompts")


def test_specs_are_told_from_their_options() -> None:
    assert split_specs("fora") == ["fora"]
    assert split_specs("fora:interval=5,rfc:tau=0.3,order=1,bdf") == [
        "fora:interval=5",
        "rfc:tau=0.3,order=1",
        "bdf",
    ]
