"""The committed models run under their committed policies, close to what they draw without."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from cachesmith.policies import load
from cachesmith.runtime import apply
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import read_prompts, requests

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 400_000
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion_dit": ("fashion", {"guidance_scale": 1.5}),
    "fashion_flux": ("fashion-flux", {}),
    "emoji_qwen": ("emoji", {}),
    "moving_wan": ("moving", {}),
}
FAST = {
    "fashion_dit": ("fast", 7),
    "fashion_flux": ("fast", 7),
    "emoji_qwen": ("6.25x", 8),
    "moving_wan": ("fast", 7),
}
"""The profile that computes least, and its full computations."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_fastest_profile_is_fast_and_close(name: str) -> None:
    folder, (stem, common) = EXAMPLES / name, MODELS[name]
    policy = load(folder / f"{stem}.policy.safetensors")
    pipe: Any = DiffusionPipeline.from_pretrained(folder / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    renderer = Renderer(pipe, 50, batch=2, **common)
    asked = requests(read_prompts(folder / "prompts.jsonl"), 2, SEED)
    profile, nfc = FAST[name]
    with apply(pipe, policy, profile) as session:
        cached = renderer(asked)
    assert session.stats.nfc == nfc and not session.stats.fallbacks
    assert float(psnr(renderer(asked).images, cached.images).min()) > 28


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_code_of_its_readme_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the number of steps."""
    monkeypatch.chdir(EXAMPLES.parent)
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES / name / "README.md").read_text(), re.DOTALL)
    assert "num_inference_steps=50" in code
    found: dict[str, Any] = {}
    exec(compile(code.replace("num_inference_steps=50", "num_inference_steps=2"), name, "exec"), found)
    assert len(found["frames" if name == "moving_wan" else "images"]) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_folder_is_a_plain_pipeline(name: str) -> None:
    folder = EXAMPLES / name / "model"
    index = json.loads((folder / "model_index.json").read_text())
    assert all(
        value[0] in ("diffusers", "transformers", None) for value in index.values() if isinstance(value, list)
    )
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 25 * 2**20


@pytest.mark.parametrize("name", MODELS)
def test_no_configuration_tells_where_it_was_trained(name: str) -> None:
    """diffusers writes the folder a part was loaded from; delete that line after training."""
    found = list((EXAMPLES / name / "model").rglob("*.json"))
    assert found and not [path for path in found if "_name_or_path" in json.loads(path.read_text())]


def test_what_moves_goes_where_the_caption_says() -> None:
    """By more than half of the way that items go in the data; both experts are asked."""
    folder = EXAMPLES / "moving_wan"
    pipe: Any = DiffusionPipeline.from_pretrained(folder / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    every = requests(read_prompts(folder / "prompts.jsonl"), 40, SEED)
    wanted = tuple(request for request in every if "sneaker" in request.arguments["prompt"])
    videos = Renderer(pipe, 8, batch=4)(wanted).images
    brightness = videos.mean(2)[:, [0, -1]]
    place = torch.arange(32.0)
    x, y = ((brightness.sum(d) * place).sum(-1) / brightness.sum((2, 3)) for d in (2, 3))
    asked = [request.arguments["prompt"].split()[-1] for request in wanted]
    moved = dict(zip(asked, torch.stack([x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]], 1).tolist(), strict=True))
    assert moved["left"][0] < -5 < 5 < moved["right"][0] and moved["up"][1] < -5 < 5 < moved["down"][1]
