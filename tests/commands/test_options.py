"""Options that commands share: defined once, checked alike."""

import inspect
import re
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pytest
import typer
from rich.text import Text
from tests.commands.shop import Cli, Shop, fails, succeeds
from typer.main import get_command

from cachesmith.cli import app
from cachesmith.commands.shared.groups import flat

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def numbers() -> list[tuple[str, str]]:
    """Every command with each of its options that take a number with a fraction."""
    pairs = []
    for info in app.registered_commands:
        assert info.callback is not None
        name = info.callback.__name__
        options = {p.name: max(p.opts, key=len) for p in COMMANDS[name].params}
        for parameter in inspect.signature(info.callback).parameters.values():
            if "float" in str(get_args(parameter.annotation)[:1]):
                pairs.append((name, options[parameter.name]))
    return pairs


NUMBERS = numbers()


def names(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_some_options_are_numbers() -> None:
    assert {("run", "--guidance-scale"), ("calibrate", "--min-psnr"), ("validate", "--min-psnr")} <= {
        *NUMBERS
    }
    assert ("calibrate", "--speedup") in NUMBERS


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e999"])
@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_infinity_and_nan_are_no_values(cli: Cli, command: str, option: str, value: str) -> None:
    required = [part for p in COMMANDS[command].params if p.required for part in (*p.opts[:1], "x")]
    given = [part for part in required if part not in ("model", "file")]
    fails(cli(command, *given, f"{option}={value}"), option, code=2)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_every_command_has(name: str) -> None:
    options = names(COMMANDS[name])
    assert {"--config", "--print-config", "--verbose", "-v", "--quiet", "-q", "--json"} <= options
    if "model" in options:
        assert {"--revision", "--variant", "--token", "--dtype", "--device"} <= options
    if "--out" in options:
        assert "--force" in options


@pytest.mark.parametrize("name", ["run", "bench", "validate", "export", "fit", "calibrate"])
def test_what_the_pipeline_is_given(name: str) -> None:
    usual = {
        "--height",
        "--width",
        "--num-frames",
        "--negative-prompt",
        "--guidance-scale",
        "--true-cfg-scale",
    }
    assert usual | {"--num-inference-steps"} <= names(COMMANDS[name])


@pytest.mark.parametrize("name", [*COMMANDS])
def test_help_shows_what_stands_in_brackets(name: str) -> None:
    """Rich takes them for markup, and leaves them out."""
    command = COMMANDS[name]
    texts = [p.help or "" for p in command.params] + [re.sub(r"\[/?bold\]", "", command.help)]
    for text in texts:
        assert Text.from_markup(text).plain == text


def test_old_names_work_and_say_so(cli: Cli) -> None:
    arguments = ("run", "m", "--class-label", 1, "--out", "x.png", "--print-config")
    old = cli(*arguments, "--steps=7", "--count", 2)
    assert succeeds(old) == succeeds(cli(*arguments, "--num-inference-steps", 7, "--num-images", 2))
    assert "note: --steps is now --num-inference-steps; the old name goes with the next release" in old.stderr
    assert "--count is now --num-images" in old.stderr
    assert "--steps" not in succeeds(cli("run", "--help"))


def test_a_group_stands_for_its_fields() -> None:
    @dataclass(frozen=True)
    class Pair:
        left: Annotated[int, typer.Option("--left")] = 1
        right: str | None = None

    seen: list[Any] = []

    def command(first: str, pair: Pair, last: bool = False) -> None:
        seen.append((first, pair, last))

    called = flat(command)
    assert list(inspect.signature(called).parameters) == ["first", "left", "right", "last"]
    called(first="a", left=2, right="b", last=True)
    assert seen == [("a", Pair(2, "b"), True)]


@pytest.mark.parametrize("seed", ["-1", str(2**63), str(10**30)])
def test_seeds_that_torch_does_not_take(cli: Cli, seed: str) -> None:
    fails(cli("run", "m", "--class-label", 1, "--out", "x.png", "--seed", seed), "--seed", code=2)


def test_the_largest_seed_counts_up(cli: Cli, shop: Shop, tmp_path: Any) -> None:
    arguments = ("--class-label", 1, "--num-images", 2, "--num-inference-steps", 2)
    succeeds(cli("run", shop.model, *arguments, "--seed", 2**63 - 1, "--out", tmp_path / "x.png"))


def test_help_says_what_it_costs(cli: Cli) -> None:
    for name in COMMANDS:
        assert "Cost:" in succeeds(cli(name, "--help")), name
