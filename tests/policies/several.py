"""A policy for a pipeline with two denoisers, of which the second takes over at step 3."""

import numpy as np

from cachesmith.policies import (
    Arrays,
    DenoiserProfile,
    Document,
    Fitted,
    Fixed,
    Forecaster,
    ModelKey,
    Policy,
    Profile,
    Stack,
)

HIGH, LOW = "CCF-----", "---CFCFF"


def key(blocks: int) -> ModelKey:
    return ModelKey(
        pipeline="WanPipeline",
        transformer="WanTransformer3DModel",
        config_hash=f"{blocks:02d}" * 32,
        blocks=blocks,
    )


def fitted(prefix: str) -> Forecaster:
    return Forecaster(rows=Fitted(weights=f"{prefix}/weights", ids=f"{prefix}/ids"))


def arrays(prefix: str, channels: int) -> Arrays:
    return {
        f"{prefix}/weights": np.linspace(-1, 1, 8 * 2 * channels, dtype=np.float32).reshape(
            1, 8, 2, channels
        ),
        f"{prefix}/ids": np.arange(channels, dtype=np.int32)[None],
    }


def several_document() -> Document:
    low = DenoiserProfile(units=Stack(), gate=Fixed(mask=LOW), forecaster=fitted("fast/transformer_2"))
    fast = Profile(
        gate=Fixed(mask=HIGH),
        forecaster=fitted("fast"),
        denoisers={"transformer_2": low},
        nfc=4.0,
        speedup=2.0,
    )
    return Document(name="two", profiles={"fast": fast}, model=key(40), models={"transformer_2": key(30)})


def several_policy() -> Policy:
    return Policy(several_document(), arrays("fast", 5) | arrays("fast/transformer_2", 7))
