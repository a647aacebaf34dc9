"""A policy that uses every kind of value. Run as a script, it writes the current format's golden files."""

from pathlib import Path

import numpy as np
import pytest

from cachesmith.policies import (
    FORMAT,
    AdamsBashforth,
    Arrays,
    Band,
    Bdf,
    Calibrated,
    Calibration,
    Clustered,
    Clusters,
    Correction,
    Distance,
    Document,
    Ema,
    Fitted,
    Fixed,
    Foca,
    Forecaster,
    Hermite,
    Heun,
    Interval,
    Lagrange,
    Mismatch,
    Mixed,
    ModelKey,
    Modules,
    Observed,
    Policy,
    Probe,
    Profile,
    Quality,
    Relational,
    Reuse,
    SamplerKey,
    Scored,
    Segments,
    Stack,
    Subspace,
    Taylor,
    TrialRecord,
    UnitFit,
    save,
)

GOLDEN = Path(__file__).parent / "golden"


def rich_policy() -> Policy:
    return Policy(rich_document(), rich_arrays())


def rich_arrays() -> Arrays:
    eye = np.eye(6, 2, dtype=np.float32)
    return {
        "fast/weights": (np.arange(4 * 8 * 3, dtype=np.float32) / 7).reshape(4, 8, 3),
        "fast/input_weights": (np.arange(4 * 8 * 4, dtype=np.float32) / -11).reshape(4, 8, 4),
        "balanced/ids": (np.arange(4 * 6, dtype=np.int32) % 5).reshape(4, 6),
        "balanced/basis": np.stack([eye, eye[::-1], -eye, eye]),
        "balanced/scales": np.full((4, 3), 1 / 3, dtype=np.float32),
        "modules/scales": np.linspace(0, 2, 10, dtype=np.float32).reshape(10, 1),
    }


def rich_document() -> Document:
    return Document(
        name="rich-1.0",
        profiles={"quality": quality(), "balanced": balanced(), "fast": fast(), "3.5x": modules()},
        model=ModelKey(
            pipeline="DiTPipeline",
            transformer="DiTTransformer2DModel",
            config_hash="0123456789abcdef" * 4,
            blocks=12,
            weights_hash="f" * 64,
            adapters=("Stil: Öl auf Leinwand",),
        ),
        sampler=SamplerKey(
            scheduler="DDIMScheduler",
            steps=8,
            sigmas=(157.4, 60.1, 20.3, 8.2, 3.1, 1.0 / 3.0, 0.1, 0.0),
            guidance="batched",
            guidance_range=(1.0, 7.5),
        ),
        mismatch=Mismatch(weights="error", few_steps="warn"),
        calibration=calibration(),
    )


def quality() -> Profile:
    return Profile(
        units=Stack(),
        axis="sigma",
        gate=Relational(thresholds=(0.1, 0.25), order=2, warmup=3, max_interval=4, tail=1),
        forecaster=Forecaster(rows=Lagrange(order=3), magnitude=Observed()),
        nfc=4.0,
        speedup=1.9,
        measured_speedup=1.7,
        quality=Quality(
            samples=32, psnr=31.5, psnr_low=30.9, psnr_high=32.1, ssim=0.97, latent_error=0.02, lpips=0.1
        ),
    )


def balanced() -> Profile:
    rows = (Reuse(), Taylor(order=2), Hermite(order=2, contraction=0.7), AdamsBashforth(order=3), Bdf())
    return Profile(
        units=Segments(starts=(0, 5)),
        axis="log-snr",
        gate=Fixed(mask="CCFFCFFC", groups={"segment.1": "CFFFFFFC"}),
        forecaster=Forecaster(
            rows=Clusters(ids="balanced/ids", rows=rows),
            subspace=Subspace(basis="balanced/basis"),
            magnitude=Mixed(scales="balanced/scales"),
        ),
        overrides={"segment.1": Forecaster(rows=Heun())},
    )


def fast() -> Profile:
    rows = Fitted(weights="fast/weights", input_weights="fast/input_weights")
    gate = Interval(interval=3, warmup=2, tail=1)
    return Profile(units=Segments(starts=(0, 3, 6, 9)), gate=gate, forecaster=Forecaster(rows=rows))


def modules() -> Profile:
    forecaster = Forecaster(magnitude=Calibrated(scales="modules/scales"))
    return Profile(units=Modules(), gate=Interval(), forecaster=forecaster)


def calibration() -> Calibration:
    return Calibration(
        fitting_prompts="a" * 64,
        heldout_prompts="b" * 64,
        fitting_size=16,
        heldout_size=32,
        fitting_seeds=(0, 1, 2**63),
        heldout_seeds=(7,),
        dtype="bfloat16",
        versions={"torch": "2.6.0", "cachesmith": "0.1.0"},
        study="sqlite:///study.db#1",
        fitted=("balanced/ids", "balanced/basis"),
        fits=(UnitFit(lane="segment.0/image", scale=0.7, spread=0.02, r2=0.99),),
        front=(TrialRecord(number=12, psnr=30.2, nfc=4.0, source="enqueued"),),
    )


@pytest.fixture(scope="session")
def rich() -> Policy:
    return rich_policy()


@pytest.fixture(scope="session")
def grown() -> Policy:
    return grown_policy()


def grown_policy() -> Policy:
    """The rich policy with profiles of everything that was added to the format since the first golden file."""
    arrays: Arrays = {
        "later/offsets": np.linspace(-1, 1, 2 * 8 * 6, dtype=np.float32).reshape(2, 8, 6),
        "grouped/weights": (np.arange(4 * 8 * 3 * 5, dtype=np.float32) / 13).reshape(4, 8, 3, 5),
        "grouped/ids": (np.arange(4 * 6, dtype=np.int32) % 5).reshape(4, 6),
    }
    document = rich_document()
    profiles = {**document.profiles, **later()}
    return Policy(document.model_copy(update={"profiles": profiles}), rich_arrays() | arrays)


def later() -> dict[str, Profile]:
    corrected = Forecaster(
        rows=Foca(), band=Band(cutoff=0.25, grid=(4, 6)), correction=Correction(offsets="later/offsets")
    )
    grouped = Forecaster(rows=Fitted(weights="grouped/weights", ids="grouped/ids"))
    moving = Forecaster(rows=Ema(beta=0.5, taps=4), refresh=Scored(ratio=0.25, importance="moved"))
    distance = Distance(signal="input", per="output", polynomial=(2.0, -1.0), threshold=0.3)
    probe = Probe(place="last", against="forecast", norm="l2", threshold=0.2, decay=0.5, floor=0.1)
    return {
        "later": Profile(gate=Fixed(mask="CCFFCFFC"), forecaster=corrected),
        "grouped": Profile(gate=Fixed(mask="CCFFCFFC"), forecaster=grouped),
        "tokens": Profile(
            units=Modules(),
            gate=distance,
            forecaster=moving,
            overrides={"attn": Forecaster(rows=Taylor(order=1), refresh=Clustered(clusters=4))},
        ),
        "probe": Profile(gate=probe, forecaster=Forecaster(rows=Taylor(order=2))),
    }


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN / "v1.policy.safetensors"


if __name__ == "__main__":
    save(rich_policy(), GOLDEN / f"v{FORMAT}.policy.safetensors")
    save(grown_policy(), GOLDEN / f"v{FORMAT}-grown.policy.safetensors")
