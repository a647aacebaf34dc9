"""What the tests of the commands share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typer.testing import Result

from cachesmith.policies import Document, Fixed, Forecaster, Interval, Policy, Profile, SamplerKey, Stack
from cachesmith.runtime.models.fingerprint import model_key, sampler_key
from cachesmith.runtime.pipeline_call import PipelineCall

STEPS = 10
GOLDEN = Path(__file__).parents[1] / "policies" / "golden" / "v1.policy.safetensors"
PROMPTS = [{"class_labels": label} for label in (3, 8)]
Cli = Callable[..., Result]


@dataclass(frozen=True)
class Shop:
    """A folder with a pipeline, its policy and prompts."""

    model: str
    policy: str
    prompts: str
    pipe: Any


def tiny_policy(pipe: Any, **profile: Any) -> Policy:
    sampler = sampler_key(pipe.scheduler, "batched", [PipelineCall({"guidance_scale": 1.5})])
    return Policy(
        Document(
            name="tiny",
            profiles={
                "balanced": Profile(gate=Fixed(mask="CCFCFCFCFF"), nfc=5.0, **profile),
                "fast": Profile(units=Stack(), gate=Interval(interval=5), forecaster=Forecaster()),
            },
            model=model_key(pipe.transformer, pipe),
            sampler=SamplerKey.model_validate(sampler),
        )
    )


def fails(result: Result, *said: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for part in said:
        assert part in result.stderr


def succeeds(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.tensor(list(picture.tobytes()))
