import pytest
from tests.commands.shop import Cli, Shop, fails, succeeds

import cachesmith
from cachesmith.commands.options import size


@pytest.mark.parametrize(
    "command", ["calibrate", "run", "inspect", "validate", "bench", "fit", "convert", "push"]
)
def test_help_has_an_example(cli: Cli, command: str) -> None:
    assert f"cachesmith {command}" in succeeds(cli(command, "--help")).split("Example")[1]


def test_version(cli: Cli) -> None:
    assert succeeds(cli("--version")) == f"cachesmith {cachesmith.__version__}\n"


@pytest.mark.parametrize("arguments", [["run"], ["inspect"], ["nonsense"], ["inspect", "x", "--nonsense"]])
def test_wrong_usage_is_code_2(cli: Cli, arguments: list[str]) -> None:
    fails(cli(*arguments), code=2)


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("1KiB", 1024), ("1k", 1000), ("1.5 MiB", 1_572_864), ("2GB", 2 * 10**9)]
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


def test_a_size_that_is_none(cli: Cli, shop: Shop) -> None:
    arguments = ("--class-label", 3, "--out", "x.png", "--memory-budget", "much")
    fails(cli("run", shop.model, *arguments), "no size", code=2)
