import json

import pytest
from tests.commands.shop import PROMPTS, STEPS, Cli, Shop, tiny_policy
from tests.tiny_folder import open_tiny, save_tiny
from typer.testing import CliRunner, Result

from cachesmith.cli import app
from cachesmith.policies import save


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    pipe = open_tiny(save_tiny(folder / "model"))
    pipe.scheduler.set_timesteps(STEPS)
    save(tiny_policy(pipe), folder / "tiny.policy.safetensors")
    (folder / "prompts.txt").write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    return Shop(
        model=str(folder / "model"),
        policy=str(folder / "tiny.policy.safetensors"),
        prompts=str(folder / "prompts.txt"),
        pipe=pipe,
    )


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    # narrower than any message, so that a test shows that messages are not wrapped
    monkeypatch.setenv("COLUMNS", "60")

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call
