"""Caching a sampler of 8 steps: the calibrated policy beside fewer steps and published methods at the same NFC.

python benchmarks/few_steps.py examples/fashion_flux/model --prompts examples/fashion_flux/prompts.jsonl --work few-flux

Prints a table in Markdown. The held-out samples are the calibration's own: captions and seeds that it did not fit on.
Of a published method's variants at the same NFC the best on the first `--screen` of them is shown.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.calibrate.calibration import divided
from cachesmith.calibrate.cost.plan import plan_of
from cachesmith.policies import Policy, computations, fixed_mask, mask, preset
from cachesmith.policies.gate import Interval
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.metrics import METRICS
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import read_prompts
from cachesmith.sampling.scores import Scores, compare, summarise

PUBLISHED: dict[str, list[tuple[str, dict[str, int]]]] = {
    "reuse (FORA)": [("fora", {})],
    "TaylorSeer": [("taylorseer", {"order": 1}), ("taylorseer", {"order": 2})],
    "TaylorSeer, whole stack": [("taylorseer-lite", {"order": 1}), ("taylorseer-lite", {"order": 2})],
}


def main() -> None:
    """Calibrate, measure everything on the held-out samples, print the table."""
    options = _options()
    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = read_prompts(options.prompts)
    common = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    config = CalibrationConfig(
        steps=options.steps, budget=options.budget, speedups=tuple(options.steps / n for n in options.nfc),
        heldout=options.samples, batch=32, guidance_scale=options.guidance_scale, work=options.work,
    )  # fmt: skip
    result = calibrate(pipe, prompts, config)
    heldout = divided(prompts, plan_of(config).samples, config.heldout, config.seed).heldout
    evaluator = Evaluator(Renderer(pipe, config.steps, 32, **common), heldout)
    spent = result.ledger.runs - result.ledger.phases["measuring"].runs(config.steps)
    print(f"{spent:.0f} run equivalents, {result.ledger.seconds:.0f} s; {len(heldout)} held-out samples.\n")
    print("| NFC | way | schedule | PSNR dB (95 %) | worst | SSIM | latent error |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for name, nfc in zip(config.budgets, options.nfc, strict=True):
        policy = _alone(result.policy, name)
        _row(nfc, "**calibrated**", fixed_mask(policy.profile()) or "", _scores(evaluator, policy))
        fewer = Renderer(pipe, int(nfc), 32, **common)(heldout)
        _row(nfc, f"{int(nfc)} steps", "", compare(evaluator.reference, fewer))
        for way, presets in PUBLISHED.items():
            policy, said = max(
                _variants(presets, config.steps, int(nfc)),
                key=lambda variant: evaluator(variant[0], options.screen).psnr,
            )
            _row(nfc, way, said, _scores(evaluator, policy))


def _variants(
    presets: list[tuple[str, dict[str, int]]], steps: int, nfc: int
) -> Iterator[tuple[Policy, str]]:
    """Yield every preset at every interval and warm-up that has just `nfc` computations, and what it is."""
    for name, settings in presets:
        for interval in range(2, steps):
            for warmup in range(1, nfc):
                letters = mask(Interval(interval=interval, warmup=warmup), steps)
                if computations(letters) == nfc:
                    said = "".join(f", {key} {value}" for key, value in settings.items())
                    yield preset(name, interval=interval, warmup=warmup, **settings), letters + said


def _alone(policy: Policy, name: str) -> Policy:
    document = policy.document.model_copy(update={"profiles": {name: policy.document.profiles[name]}})
    names = {array for array in policy.arrays if f'"{array}"' in document.model_dump_json()}
    return Policy(document, {array: policy.arrays[array] for array in names})


def _scores(evaluator: Evaluator, policy: Policy) -> Scores:
    return compare(evaluator.reference, evaluator(policy).pictures)


def _row(nfc: float, way: str, schedule: str, scores: Scores) -> None:
    quality = summarise(scores, 0)
    interval = f"{quality.psnr:.2f} ({quality.psnr_low:.2f} to {quality.psnr_high:.2f})"
    ssim, latent = (METRICS[name].text(quality.mean(name)) for name in ("ssim", "latent_error"))
    print(
        f"| {nfc:g} | {way} | {schedule} | {interval} | {quality.worst('psnr'):.1f} | {ssim} | {latent} |",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--nfc", type=int, nargs="+", default=[5, 4])
    parser.add_argument("--budget", type=float, default=100)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--screen", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("few-steps-work"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
