"""Every tiny pipeline, from `calibrate` to its policy at work: `python -m tests.pipelines.sweep` notes what holds."""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.files import replacing
from cachesmith.policies import load, save
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests
from tests.pipelines import PIPELINES, TinyPipeline

FOUND = Path(__file__).with_name("calibrated.json")
"""For every pipeline, its transformer's class, and `yes` or what `check` raised."""


def check(tiny: TinyPipeline, work: Path) -> str:
    """Calibrate, save, load, and sample unseen requests: half of the run's steps are forecast, and none falls back.

    Returns the class of the transformer.
    """
    pipe, prompts = tiny.pipe(), [tiny.request(i) for i in range(4)]
    config = CalibrationConfig(
        steps=tiny.steps, budget=10.0, speedups=(2.0,), fitting=2, heldout=2, batch=2, work=work
    )
    policy = calibrate(pipe, prompts, config).policy
    save(policy, work / "x.policy.safetensors")
    loaded = load(work / "x.policy.safetensors")
    assert loaded == policy
    (profile,) = loaded.document.profiles.values()
    assert profile.nfc is not None and profile.speedup is not None and profile.speedup >= 2
    renderer, unseen = Renderer(pipe, tiny.steps, 2), requests(prompts, 2, 9)
    plain = renderer(unseen)
    with apply(pipe, loaded) as session:
        cached = renderer(unseen)
    assert not session.stats.fallbacks, session.stats.fallbacks
    assert abs(session.stats.nfc - profile.nfc) < 1e-6, session.stats.nfc
    assert not cached.not_finite() and not torch.equal(cached.latents, plain.latents)
    return type(pipe.transformer).__name__


def main(names: list[str]) -> None:
    """Check those whose names hold one of `names`, or all, and note each."""
    for name, tiny in PIPELINES.items():
        if names and not any(part in name for part in names):
            continue
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                entry = {"transformer": check(tiny, Path(folder)), "calibrate": "yes"}
            except Exception as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                entry = {"transformer": type(tiny.pipe().transformer).__name__, "calibrate": why}
        print(
            f"{name}: {entry['calibrate']} ({time.process_time() - began:.1f} s)", file=sys.stderr, flush=True
        )
        _note(name, entry)


def _note(name: str, entry: dict[str, str]) -> None:
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    with replacing(FOUND) as part:
        text = json.dumps(dict(sorted({**found, name: entry}.items())), indent=1)
        part.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
