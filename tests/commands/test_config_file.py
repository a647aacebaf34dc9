"""`--config FILE.yaml` and `--print-config`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.commands.shop import Cli, Shop, fails, succeeds

from cachesmith.commands.shared import config_file, register


@pytest.fixture
def printed(cli: Cli, tmp_path: Path) -> Any:
    """Return what `run` would do with a file of these lines, and with more options."""

    def read(text: str, *more: object, encoding: str = "utf-8") -> dict[str, Any]:
        path = tmp_path / "options.yaml"
        path.write_text(text, encoding=encoding)
        said = succeeds(cli("run", "--config", path, "--print-config", *more))
        values: dict[str, Any] = yaml.safe_load(said)
        return values

    return read


BASE = "model: m\nout: x.png\nclass-label: 3\n"


def test_values_of_the_file_are_defaults(printed: Any) -> None:
    values = printed(BASE + "num-inference-steps: 20\nguidance_scale: 1.5\nseparate: true\ndtype: bfloat16")
    assert (values["model"], values["out"], values["class-label"]) == ("m", "x.png", ["3"])
    assert (values["num-inference-steps"], values["guidance-scale"]) == (20, 1.5)
    assert values["separate"] is True and values["force"] is False and values["dtype"] == "bfloat16"


def test_the_command_line_wins(printed: Any) -> None:
    values = printed(
        BASE + "seed: 1\nforce: true", "other", "--seed", 2, "--class-label", 5, "--class-label", 6
    )
    assert (values["model"], values["seed"], values["class-label"]) == ("other", 2, ["5", "6"])
    assert values["force"] is True


def test_old_names_nulls_lists_and_a_byte_order_mark(printed: Any) -> None:
    values = printed(
        "model: m\nout: x.png\nprompt: [a, 'no']\nsteps: 9\ncount: 2\nprofile:\nvariant: null",
        encoding="utf-8-sig",
    )
    assert (values["num-inference-steps"], values["num-images"], values["prompt"]) == (9, 2, ["a", "no"])
    assert "profile" not in values and "variant" not in values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3", "unknown key 'stepz'; did you mean 'num-inference-steps'?"),
        ("guidance-scle: 3", "did you mean 'guidance-scale'?"),
        ("policys: x", "did you mean 'policy'?"),
        ("zzzzzz: 3", "known are: model, out, prompt"),
        ("seed: 1\nseed: 2", "gives 'seed' twice"),
        ("steps: 1\nnum_inference_steps: 2", "gives 'num-inference-steps' twice"),
        ("seed: [1, 2]", "'seed' takes one value"),
        ("prompt: {a: 1}", "'prompt' takes one value or a list of values"),
        ("seed: 1.5", "--seed"),
        ("seed: yes", "--seed"),
        ("guidance-scale: .inf", "guidance-scale"),
        ("dtype: float8", "--dtype"),
        ("- seed", "holds no options"),
        ("a: b: c", "is no YAML"),
        ("\x00", "is no YAML"),
        ("config: other.yaml", "unknown key 'config'"),
    ],
)
def test_what_is_refused(cli: Cli, tmp_path: Path, text: str, said: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    path = tmp_path / "options.yaml"
    path.write_text(text)
    fails(cli("run", "m", "--out", "x.png", "--class-label", 1, "--config", path), said, code=2)


def test_a_file_that_is_not_there(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    fails(cli("run", "m", "--config", tmp_path / "none.yaml"), "No such file", code=2)


def test_a_printed_file_repeats_the_command(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    arguments = ("--policy", shop.policy, "--class-label", 3, "--num-images", 2, "--seed", 4, "--separate")
    succeeds(cli("run", shop.model, *arguments, "--out", tmp_path / "a.png"))
    text = succeeds(cli("run", shop.model, *arguments, "--out", tmp_path / "b.png", "--print-config"))
    assert not (tmp_path / "b-0.png").exists()
    (tmp_path / "b.yaml").write_text(text)
    succeeds(cli("run", "--config", tmp_path / "b.yaml"))
    for index in (0, 1):
        assert (tmp_path / f"a-{index}.png").read_bytes() == (tmp_path / f"b-{index}.png").read_bytes()


def test_a_range_is_printed_as_it_is_typed(cli: Cli) -> None:
    arguments = ("m", "--policy", "x", "--out", "b", "--pictures", "1:2:4", "--print-config")
    assert yaml.safe_load(succeeds(cli("export", *arguments)))["pictures"] == "1:2:4"


def test_a_token_is_never_printed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    arguments = ("m", "--class-label", 1, "--out", "x.png", "--print-config")
    assert "secret" not in succeeds(cli("run", *arguments))
    assert "secret" not in succeeds(cli("run", *arguments, "--token", "hf_secret"))


def test_the_options_are_kept_for_reports() -> None:
    seen: list[str] = []

    def command(count: int = 3) -> None:
        seen.append(config_file.used_config())

    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    register.add_command(app, command)
    assert CliRunner().invoke(app, ["--count", "4"]).exit_code == 0
    assert yaml.safe_load(seen[0]) == {"count": 4}
