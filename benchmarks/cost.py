"""Quality against run equivalents: calibrated with several budgets, measured where nothing was fitted.

python benchmarks/cost.py examples/fashion_flux/model --prompts examples/fashion_flux/prompts.jsonl \
  --policy examples/fashion_flux/fashion-flux.policy.safetensors --speedup 6.25 --budget 50 --budget 100

Several speed-ups are profiles of one calibration. The samples are those that the committed policy held out (captions
where there are enough, seeds always; --seed gives them seeds that no setting was chosen on); a calibration here holds
out more captions, these among them, and fits on other seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.policies import Policy, load
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import heldout_part, read_prompts, requests

SAMPLES = 64


def main() -> None:
    """Print one line a budget, after one for the committed policy's profile of the same cost."""
    options = _options()
    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts, committed = read_prompts(options.prompts), load(options.policy)
    record = committed.document.calibration
    assert record is not None, "the committed policy says what it held out"
    common = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    renderer = Renderer(pipe, options.steps, 32, **common)
    seed = record.unseen_seed if options.seed is None else options.seed
    heldout = Evaluator(renderer, requests(heldout_part(prompts, record), SAMPLES, seed))
    wanted = {options.steps // speedup for speedup in options.speedup}
    for name, profile in committed.document.profiles.items():
        if profile.nfc in wanted:
            _say({"policy": f"committed, {name}", **_measured(heldout, committed, name)})
    for budget in options.budget:
        config = CalibrationConfig(
            steps=options.steps, budget=budget, speedups=tuple(options.speedup), heldout=1,
            batch=options.batch, guidance_scale=options.guidance_scale, work=options.work / f"{budget:g}",
        )  # fmt: skip
        result = calibrate(pipe, prompts, config)
        phases = result.ledger.phases
        spent = result.ledger.runs - phases["measuring"].runs(options.steps)
        seconds = result.ledger.seconds - phases["measuring"].seconds
        for name in result.policy.document.profiles:
            quality = _measured(heldout, result.policy, name)
            _say({"budget": budget, "spent": round(spent, 1), "seconds": round(seconds), **quality})


def _measured(heldout: Evaluator, policy: Policy, name: str) -> dict[str, Any]:
    document = policy.document.model_copy(update={"profiles": {name: policy.document.profiles[name]}})
    names = {array for array in policy.arrays if f'"{array}"' in document.model_dump_json()}
    outcome = heldout(Policy(document, {array: policy.arrays[array] for array in names}))
    worst, mean = float(outcome.samples.min()), float(outcome.samples.mean())
    first = float(outcome.samples[: SAMPLES // 2].mean())
    gate = policy.document.profiles[name].gate
    return {
        "nfc": outcome.nfc, "psnr": round(mean, 2), "first half": round(first, 2), "worst": round(worst, 1),
        "mask": getattr(gate, "mask", None),
    }  # fmt: skip


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--speedup", type=float, action="append", required=True)
    parser.add_argument("--budget", type=float, action="append", required=True)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("cost-work"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
