"""Quantised weights and another attention backend: a model is calibrated as it runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_flux

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests


def torchao(transformer: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig())


def fp8(transformer: Any) -> None:
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def attention(transformer: Any) -> None:
    transformer.set_attention_backend("_native_math")


@pytest.mark.usefixtures("process_backend")
@pytest.mark.parametrize(
    ("change", "names"),
    [
        (fp8, "float8_e4m3fn native"),
        pytest.param(attention, "none _native_math", marks=pytest.mark.slow),
        pytest.param(torchao, "Int8Tensor native", marks=pytest.mark.slow),  # installed by `make slow`
    ],
)
def test_a_model_is_calibrated_as_it_runs(tmp_path: Path, change: Any, names: str) -> None:
    pipe, text = tiny_flux(), torch.Generator().manual_seed(0)
    change(pipe.transformer)
    prompts: list[Any] = [
        {"prompt_embeds": torch.randn(1, 3, 32, generator=text), "height": 16, "width": 16}
        | {"pooled_prompt_embeds": torch.randn(1, 32, generator=text)}
        for _ in range(6)
    ]
    asked: dict[str, Any] = {"budget": 10.0, "speedups": (2.0,), "fitting": 3, "heldout": 1, "batch": 3}
    policy = calibrate(pipe, prompts, CalibrationConfig(6, work=tmp_path, **asked)).policy
    key, profile = policy.document.model, policy.profile()
    assert key is not None and f"{key.quantization} {key.attention}" == names
    assert profile.quality is not None and profile.quality.psnr > 25
    with apply(pipe, policy) as session:
        Renderer(pipe, 6, 2)(requests(prompts, 1, 9))
    assert session.stats.nfc == profile.nfc and not session.stats.fallbacks
