"""Policies to the Hub and back, by huggingface_hub's own means, against a stand-in on a loopback port."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.calibrate.report.made_up import report
from tests.commands.shop import Cli, fails, succeeds
from tests.hub.standin import GATED, TOKEN, Hub, hub
from typer.testing import CliRunner

from cachesmith.calibrate.report.html import write_html
from cachesmith.cli import app
from cachesmith.hub import files_of, push
from cachesmith.hub.card import Base
from cachesmith.policies import (
    Calibration,
    Document,
    Fixed,
    Policy,
    PolicyError,
    Profile,
    Quality,
    SamplerKey,
    Summary,
    load,
    save,
)
from cachesmith.policies.file.hub import FILENAME

REPO = "user/flux-policy"


def calibrated() -> Policy:
    profiles = {
        name: Profile(
            gate=Fixed(mask=mask), nfc=mask.count("C"), speedup=10 / mask.count("C"),
            quality=Quality(
                samples=4, psnr=psnr, psnr_low=psnr - 1, psnr_high=psnr + 1, ssim=0.9, latent_error=0.1, lpips=0.02
            ),
        )
        for name, mask, psnr in (("quality", "CCFCFCFCFC", 41.5), ("fast", "CCFFFFFFFF", 30.25))
    }  # fmt: skip
    record = Calibration(
        fitting_prompts="a" * 64, heldout_prompts="b" * 64, fitting_size=8, heldout_size=4, fitting_seeds=(1,),
        heldout_seeds=(2,), dtype="bfloat16", versions={"torch": "2.13"}, study="s",
    )  # fmt: skip
    sampler = SamplerKey(
        scheduler="FlowMatchEulerDiscreteScheduler", steps=10, sigmas=tuple(1 - i / 10 for i in range(10))
    )
    return Policy(Document(name="flux", profiles=profiles, sampler=sampler, calibration=record))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """huggingface_hub's own client, pointed at the stand-in, with an empty cache and no token."""
    from huggingface_hub import constants

    with hub() as state:
        template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(
            "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
        )
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", state.url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield state


def test_there_and_back_again(server: Hub) -> None:
    policy = calibrated()
    address = policy.push_to_hub(REPO, token=TOKEN)
    assert address == f"{server.url}/{REPO}/commit/abc"
    assert server.commits == [(REPO, "main", sorted(["README.md", FILENAME, "front_seconds.png"]))]
    assert load(REPO) == policy


@pytest.mark.parametrize(("metric", "task"), [("worst_frame", "text-to-video"), ("psnr", "text-to-audio")])
def test_the_card_of_what_is_no_picture(metric: str, task: str) -> None:
    """SSIM is of pictures alone; the worst sample is known without a report, too."""
    policy = calibrated()
    worst = Summary(mean=30.25, low=29.0, high=31.0, worst=27.5)
    quality = Quality(
        samples=4, psnr=30.25, psnr_low=29.25, psnr_high=31.25, latent_error=0.1, metrics={"psnr": worst, metric: worst}
    )  # fmt: skip
    profile = policy.profile("fast").model_copy(update={"quality": quality})
    document = policy.document.model_copy(update={"profiles": {"fast": profile}})
    card = files_of(REPO, Policy(document))["README.md"].decode()
    assert "| fast | 2.00 | 5.00 | 30.25 (29.25 to 31.25) | 27.50 | – | – |" in card
    assert f"type: {task}" in card


def test_what_was_downloaded_is_read_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = calibrated()
    push(policy, REPO, token=TOKEN)
    load(REPO)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(server.requests)
    assert load(REPO) == policy and len(server.requests) == count
    with pytest.raises(PolicyError, match=r"was not downloaded before.*give the path"):
        load("user/another")


def no_server_at(address: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Point the client there; return the list of what is waited between its attempts, in seconds."""
    from huggingface_hub import constants

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", address, raising=False)
    return waits


def test_a_hub_that_is_not_there(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = no_server_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(
        PolicyError, match=r"cannot be reached for user/flux-policy: .*refused; check the conn"
    ):
        load(REPO)
    assert sum(waits) <= 2  # huggingface_hub waits for 23 s
    waits.clear()
    with pytest.raises(PolicyError, match="cannot be reached"):
        push(calibrated(), REPO, token=TOKEN)
    assert sum(waits) <= 2


def test_what_was_downloaded_is_read_while_the_hub_is_not_there(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(calibrated(), REPO, token=TOKEN)
    load(REPO)
    waits = no_server_at("http://127.0.0.1:9", monkeypatch)
    assert load(REPO) == calibrated() and not waits


def test_a_hub_that_swallows_what_is_sent(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops: a listener whose queue is full answers no connection."""
    monkeypatch.setattr("cachesmith.policies.file.reach.SECONDS", 0.2)
    monkeypatch.setattr("cachesmith.policies.file.reach.AGAIN", 0.1)
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        waits = no_server_at(f"http://127.0.0.1:{listener.getsockname()[1]}", monkeypatch)
        with pytest.raises(PolicyError, match="cannot be reached"):
            load(REPO)
        assert not waits


def test_a_slow_hub_is_waited_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(calibrated(), REPO, token=TOKEN)
    monkeypatch.setattr("cachesmith.policies.file.reach.SECONDS", 0.05)
    server.seconds = 0.2
    assert load(REPO) == calibrated()


def test_revisions(server: Hub, cli: Cli) -> None:
    first = calibrated()
    push(first, REPO, token=TOKEN)
    second = Policy(first.document.model_copy(update={"name": "second"}))
    push(second, REPO, token=TOKEN, revision="trial")
    assert load(REPO) == first and load(REPO, revision="trial") == second
    with pytest.raises(PolicyError, match="no revision 'none'"):
        load(REPO, revision="none")
    assert load(f"{REPO}@trial") == load(f"{REPO}@trial", revision="trial") == second
    with pytest.raises(PolicyError, match="no revision 'none'"):
        load(f"{REPO}@none")
    with pytest.raises(PolicyError, match="leave one of them out"):
        load(f"{REPO}@trial", revision="main")
    assert json.loads(succeeds(cli("inspect", f"{REPO}@trial", "--json")))["id"] == second.id


def test_gated_private_and_missing(server: Hub) -> None:
    server.repositories[GATED] = {"main": {}}
    with pytest.raises(PolicyError, match="is gated: ask for access at"):
        load(GATED)
    push(calibrated(), REPO, token=TOKEN, private=True)
    assert server.private[REPO]
    with pytest.raises(PolicyError, match="no repository of that name"):
        load(REPO)
    assert load(REPO, token=TOKEN) == calibrated()
    server.repositories["user/model"] = {"main": {"README.md": b"a model"}}
    with pytest.raises(PolicyError, match="so it is no policy"):
        load("user/model")


def test_without_the_right_to_write_nothing_is_uploaded(server: Hub) -> None:
    with pytest.raises(PolicyError, match=r"refused|may see"):
        push(calibrated(), REPO, token="hf_wrong")
    assert not server.repositories and not server.commits


def test_what_comes_from_the_hub_is_not_trusted(server: Hub) -> None:
    push(calibrated(), REPO, token=TOKEN)
    files = server.repositories[REPO]["main"]
    files[FILENAME] = files[FILENAME].replace(b"flux", b"xulf")
    with pytest.raises(PolicyError, match="modified after it was saved"):
        load(REPO)


def test_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is asked for what is here, or has the name of a policy file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    (tmp_path / "user").mkdir()
    save(calibrated(), tmp_path / "user" / "x.policy.safetensors")
    assert load("user/x.policy.safetensors") == calibrated()
    with pytest.raises(PolicyError, match="No such file"):
        load("user/missing.policy.safetensors")
    with pytest.raises(PolicyError, match="No such file"):
        load("a/b/c")
    with pytest.raises(PolicyError, match="leave revision="):
        load("user/x.policy.safetensors", revision="main")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report of the policy."""
    made_up = report(
        policy_id=calibrated().id,
        facts={"model": "x", "hardware": "NVIDIA H100", "size": "1024 × 1024 pixels"},
    )
    write_html(tmp_path / "report", made_up)
    return tmp_path / "report"


def test_the_card_says_what_a_team_needs(folder: Path) -> None:
    base = Base("org/flux", "0a1b2c")
    text = files_of(REPO, calibrated(), base, folder)["README.md"].decode()
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "org/flux" and header["library_name"] == "cachesmith"
    results = header["model-index"][0]["results"]
    found = {(metric["type"], metric["value"]) for result in results for metric in result["metrics"]}
    assert found == {("psnr", 41.5), ("psnr", 30.25), ("ssim", 0.9), ("lpips", 0.02)}
    for said in (
        'revision="0a1b2c"', f'load("{REPO}")', "41.50 (40.50 to 42.50)", "35.00",
        "FlowMatchEulerDiscreteScheduler, 10 steps", "NVIDIA H100", "1024 × 1024", "2.00 hours, 2.00 GPU-hours",
        "b" * 16, "cachesmith calibrate model --out x",
        "front_seconds.png", "report.html", calibrated().id, "| 0.4 | 2.50 |",
    ):  # fmt: skip
        assert said in text, said


def test_the_card_without_a_report_claims_nothing(tmp_path: Path) -> None:
    files = files_of(REPO, calibrated())
    text = files["README.md"].decode()
    assert "seconds a sample" not in text and "hardware" not in text and "base_model" not in text
    assert files["front_seconds.png"].startswith(b"\x89PNG") and "full computations" in text


def test_a_report_of_another_policy_is_refused(folder: Path, tmp_path: Path) -> None:
    other = Policy(calibrated().document.model_copy(update={"name": "other"}))
    with pytest.raises(PolicyError, match="is of policy"):
        files_of(REPO, other, None, folder)
    with pytest.raises(PolicyError, match="--report"):
        files_of(REPO, other, None, tmp_path)
    (folder / "report.json").write_text('{"format": 9}')
    with pytest.raises(PolicyError, match="not valid"):
        files_of(REPO, calibrated(), None, folder)


def test_the_report_tells_the_same_as_its_json(folder: Path) -> None:
    from cachesmith.hub import read_facts

    facts = read_facts(folder, calibrated().id)
    assert facts.profiles["quality"].worst == 35.0 and facts.uncached_seconds == 1.0


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_the_command(cli: Cli, server: Hub, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "flux.policy.safetensors"
    save(calibrated(), path)
    command = ("push", path, REPO, "--report", folder, "--base-model", "org/flux")
    said = succeeds(cli(*command, "--token", TOKEN))
    assert f"{server.url}/{REPO}/commit/abc" in said
    assert server.commits[0][2] == sorted(["README.md", FILENAME, "front_seconds.png", "report.html"])
    succeeds(cli("inspect", REPO))
    fails(cli(*command, "--token", "hf_wrong"), "user/flux-policy")


def test_a_dry_run_uploads_nothing(cli: Cli, server: Hub, tmp_path: Path) -> None:
    path = tmp_path / "flux.policy.safetensors"
    save(calibrated(), path)
    out = tmp_path / "dry"
    assert "README.md" in succeeds(cli("push", path, REPO, "--dry-run", out))
    assert load(out / FILENAME) == calibrated() and not server.requests
    fails(cli("push", path, REPO, "--dry-run", out), "not empty")
