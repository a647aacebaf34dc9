"""Text encoders are asked once for what a phase samples several times."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.sampling.requests import read_prompts

FLUX = Path(__file__).parents[2] / "examples" / "fashion_flux"


def test_prompts_are_encoded_once_for_all_that_is_measured(tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(FLUX / "model", dtype=torch.float32)
    encoded: Counter[Any] = Counter()
    pipe.text_encoder_2.register_forward_hook(lambda _, ids, __: encoded.update([str(ids)]))
    settings: dict[str, Any] = {"steps": 8, "batch": 2, "fitting": 2, "heldout": 1, "budget": 10.0}
    calibrate(
        pipe,
        read_prompts(FLUX / "prompts.jsonl")[:5],
        CalibrationConfig(work=tmp_path, speedups=(2.0, 8 / 3), **settings),
    )
    print(encoded)
    assert [*encoded.values()].count(1) == 1
    # fitting samples are encoded once a phase, and a phase is at most
    assert len(encoded) == 2
