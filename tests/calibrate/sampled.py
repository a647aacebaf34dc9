"""A sampler's key as calibration writes it: from a run that was watched."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.tiny import Pipeline

from cachesmith.calibrate.record.recorder import Recorder
from cachesmith.policies import SamplerKey, Stack
from cachesmith.runtime import watch
from cachesmith.runtime.models.fingerprint import sampler_key


def sampler_of(pipe: Pipeline, sample: Any, given: Sequence[Mapping[str, Any]] = ()) -> SamplerKey:
    recorder = Recorder()
    with watch(pipe, Stack(), recorder):
        sample(pipe)
    branches = len(recorder.branches)
    return sampler_key(pipe.scheduler, "sequential" if branches > 1 else "none", recorder.calls, given)
