"""Devices, variants, the hub, and what is told before a model's weights are loaded."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.commands.shop import Cli, Shop, fails, succeeds, tiny_policy

from cachesmith.commands.failure import INSTALL
from cachesmith.commands.shared.loading_causes import saved_variants
from cachesmith.policies import Policy, load, save

RUN = ("--class-label", 1, "--num-inference-steps", 2)
LACKING = [
    name
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("cuda:99", False),
        ("mps", torch.backends.mps.is_available()),
        ("xpu", torch.xpu.is_available()),
        ("hpu", False),
        ("vulkan", False),
        ("meta", False),
        ("privateuseone", False),
        ("abacus", False),
        ("", False),
    )
    if not there
]


@pytest.mark.parametrize("device", LACKING)
def test_devices_that_torch_lacks(cli: Cli, shop: Shop, tmp_path: Path, device: str) -> None:
    fails(cli("run", shop.model, *RUN, "--out", tmp_path / "x.png", "--device", device), "--device cpu")


@pytest.fixture(scope="module")
def variant(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variant")
    DiffusionPipeline.from_pretrained(shop.model, dtype=torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def test_a_variant_is_told_and_loaded(cli: Cli, variant: Path, tmp_path: Path) -> None:
    run = ("run", variant, *RUN, "--out", tmp_path / "x.png")
    fails(cli(*run), "holds weights of the variant fp16; give --variant fp16")
    fails(cli(*run, "--variant", "ema"), "holds weights of the variant fp16; give --variant fp16")
    succeeds(cli(*run, "--variant", "fp16"))


def test_a_variant_that_a_folder_lacks(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = ("run", shop.model, *RUN, "--out", tmp_path / "x.png")
    fails(cli(*run, "--variant", "fp16"), "holds no variant 'fp16'; leave --variant out")
    fails(cli(*run, "--revision", "main"), "is a folder, which has no revisions; leave --revision out")


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", {"fp16"}),
        ("diffusion_pytorch_model.non_ema.bin", {"non_ema"}),
        ("model.fp16-00001-of-00002.safetensors", {"fp16"}),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", {"fp16"}),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", set()),
        ("model.safetensors", set()),
        ("pytorch_model.bin", set()),
        ("model.safetensors.index.json", set()),
    ],
)
def test_names_of_variants(tmp_path: Path, name: str, variants: set[str]) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / name).touch()
    assert saved_variants(tmp_path) == variants


class Hub(BaseHTTPRequestHandler):
    """Refuses in the hub's way, by the name that is asked for."""

    ANSWERS = (
        (b"gated", 403, "GatedRepo"),
        (b"none", 401, "RepoNotFound"),
        (b"old", 404, "RevisionNotFound"),
    )
    FILES = b'{"id": "org/empty", "sha": "%s", "siblings": [], "private": false}' % (b"a" * 40)

    def do_GET(self) -> None:
        body, usual = b"", (404, "EntryNotFound" if "/resolve/" in self.path else "")
        code, reason = next(((c, r) for name, c, r in self.ANSWERS if name in self.path.encode()), usual)
        if "empty" in self.path and "/resolve/" not in self.path:
            code, reason, body = 200, "", self.FILES
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def point_to(address: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path / "hub")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "org/gated",
            "org/gated is gated: accept its terms at https://huggingface.co/org/gated, then give --token",
        ),
        ("org/none", "the hub has no model of this name that you may see; check the name, and give --token"),
        ("org/old", "org/old has no revision 'v2' on the hub; change --revision"),
        ("org/empty", "org/empty on the hub is no diffusers pipeline: it has no model_index.json"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses(cli: Cli, tmp_path: Path, model: str, said: str) -> None:
    revision = ("--revision", "v2") if model == "org/old" else ()
    result = cli("run", model, *RUN, "--out", tmp_path / "x.png", *revision)
    fails(result, said)
    assert "..." not in result.stderr


def test_a_hub_that_cannot_be_reached(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch, tmp_path / "hub")
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    result = cli("run", "org/name", *RUN, "--out", tmp_path / "x.png")
    fails(result, "the hub cannot be reached; check")
    assert sum(waits) <= 2
    assert "loading" not in result.stderr  # asked once, and not again by the loader


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("command", ["run", "bench", "validate"])
def test_weights_of_another_number_of_steps_are_told_before_loading(
    cli: Cli, tmp_path: Path, command: str
) -> None:
    example = Path(__file__).parents[2] / "examples" / "fashion_dit"
    prompts = ("--prompts", example / "prompts.jsonl") if command != "run" else ("--class-label", 1)
    out = ("--out", tmp_path / "x.png") if command == "run" else ()
    policy = ("--policy", example / "fashion.policy.safetensors", "--num-inference-steps", 30)
    fails(
        cli(command, example / "model", *policy, *prompts, *out),
        "fitted for 50 steps and fit no other number; leave --num-inference-steps out",
    )


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("cachesmith.commands.pipeline._load", loaded)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("command", ["run", "bench", "validate", "export"])
def test_a_policy_of_another_model_is_told_before_loading(
    cli: Cli, shop: Shop, tmp_path: Path, command: str
) -> None:
    document = load(shop.policy).document
    assert document.model is not None
    other = document.model.model_copy(update={"config_hash": "0" * 64})
    path = tmp_path / "other.policy.safetensors"
    save(Policy(document.model_copy(update={"model": other})), path)
    prompts = ("--prompts", shop.prompts) if command != "run" else ("--class-label", 1)
    out = ("--out", tmp_path / "x.png") if command in ("run", "export") else ()
    fails(cli(command, shop.model, "--policy", path, *prompts, *out), "the transformer configuration")


def test_a_configuration_that_leaves_defaults_out_is_the_same_model(
    cli: Cli, shop: Shop, tmp_path: Path
) -> None:
    """As older versions of diffusers wrote it."""
    import json

    folder = tmp_path / "model"
    shutil.copytree(shop.model, folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["dropout"], config["_diffusers_version"]
    path.write_text(json.dumps(config))
    policy = tmp_path / "tiny.policy.safetensors"
    save(tiny_policy(shop.pipe), policy)
    succeeds(cli("run", folder, "--policy", policy, "--class-label", 1, "--out", tmp_path / "x.png"))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "a bag", "--out", "x.png"), "takes no 'prompt'; it takes class_labels, guidance_scale"),
        (("--class-label", 1, "--height", 32, "--out", "x.png"), "takes no 'height'"),
        (
            ("--class-label", 1, "--out", "x.mp4"),
            "the pipeline makes pictures, not videos; end --out in .png",
        ),
        (
            ("--class-label", 1, "--out", "x.wav"),
            "the pipeline makes pictures, not sounds; end --out in .png",
        ),
    ],
)
def test_calls_that_the_pipeline_does_not_take_are_told_before_loading(
    cli: Cli, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(cli("run", shop.model, *arguments), said)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("optuna", ("calibrate", "--prompts", "p", "--out", "x.policy.safetensors")),
        ("torchmetrics", ("calibrate", "--prompts", "p", "--out", "x.policy.safetensors")),
        ("matplotlib", ("calibrate", "--prompts", "p", "--out", "x.policy.safetensors", "--report", "r")),
        ("sklearn", ("fit", "--method", "hyca", "--prompts", "p", "--out", "x.policy.safetensors")),
        ("onnx", ("export", "--policy", "x", "--out", "b")),
        ("onnxscript", ("export", "--policy", "x", "--out", "b")),
        ("imageio_ffmpeg", ("run", "--prompt", "a", "--out", "x.mp4")),
    ],
)
def test_extras_that_are_missing_are_told_first(
    cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, arguments: Any
) -> None:
    monkeypatch.setattr("cachesmith.commands.failure.find_spec", lambda name: None if name == module else 1)
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    fails(
        cli(command, shop.model, *rest),
        f"{module} is not installed; install it with: pip install {INSTALL[module]}",
    )


def test_advice_about_extras_can_be_followed() -> None:
    import re
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for module, wanted in INSTALL.items():
        for extra in re.findall(r"cachesmith\[(.+)\]", wanted):
            assert extra in project["optional-dependencies"], module
