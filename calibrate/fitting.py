"""Fit one published method, and bind what comes out to the model and sampler it was fitted on."""

import inspect
import json
from collections.abc import Sequence
from typing import Any

from cachesmith.calibrate.guidance import guidance_of
from cachesmith.calibrate.methods import METHODS
from cachesmith.calibrate.probe import other_sizes
from cachesmith.policies import Policy, PolicyError, SamplerKey, Stack
from cachesmith.policies.errors import refusing
from cachesmith.progress import stage
from cachesmith.runtime import Tick, UnitResult, Watcher, watch
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.fingerprint import model_key, sampler_key
from cachesmith.runtime.pipeline_call import PipelineCall
from cachesmith.sampling.encode import encoded_once
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def read_options(settings: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` settings: numbers, true, false, null and JSON lists as such, all else as text."""
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key or key in options:
            raise PolicyError(f"cannot read {setting!r}; write each option once, as KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def check_method(method: str, options: dict[str, Any]) -> None:
    """Raise `PolicyError`, with the known ones, for an unknown method or option."""
    if method not in METHODS:
        raise PolicyError(f"there is no method {method!r}; choose from {', '.join(sorted(METHODS))}")
    # the first two are the renderer and the requests
    known = list(inspect.signature(METHODS[method]).parameters)[2:]
    for option in options:
        if option not in known:
            raise PolicyError(
                f"method {method} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )


def fit_method(
    pipe: Any,
    method: str,
    requests: Sequence[Request],
    steps: int,
    batch: int,
    common: dict[str, Any],
    options: dict[str, Any],
) -> Policy:
    """Fit `method` on uncached runs of `requests` and return it, bound to `pipe`'s model and sampler.

    common: arguments of every pipeline call, such as `guidance_scale`. Raises `PolicyError` for an unknown method or
    option, for an option's value that makes no sense, and when there is no adapter for the transformer;
    `CachesmithError` where the uncached samples are not finite.
    """
    check_method(method, options)
    if len(named := denoisers(pipe)) > 1:
        raise PolicyError(
            f"published methods are fitted for one denoiser, and this pipeline has {', '.join(named)}; use "
            "cachesmith calibrate, which takes all of them"
        )
    with stage(f"fitting {method}", 2) as advance:
        sampler = _sampler(pipe, requests, steps, common)
        advance()
        try:
            with refusing(f"method {method}"), encoded_once(pipe):
                fitted = METHODS[method](Renderer(pipe, steps, batch, **common), requests, **options)
        except (TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
            if not options:
                raise
            raise PolicyError(
                f"method {method} cannot use {options}: {error or type(error).__name__}; change --set"
            ) from error
        advance()
    update = {"model": model_key(pipe.transformer, pipe), "sampler": sampler, "name": method}
    return Policy(fitted.document.model_copy(update=update), fitted.arrays)


class _Branches(Watcher):
    """Notes the guidance branches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.rows = 0
        self.call = PipelineCall({})

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        self.seen.add(tick.branch)
        self.call = tick.call

    def observe(self, result: UnitResult) -> None:
        """Note the rows of the batch."""
        self.rows = max(self.rows, len(result.inputs[0]))


def _sampler(pipe: Any, requests: Sequence[Request], steps: int, common: dict[str, Any]) -> SamplerKey:
    """Sample once, to learn the noise levels and how guidance is computed."""
    branches, renderer = _Branches(), Renderer(pipe, steps, 1, **common)
    calls = other_sizes(renderer, requests[0], requests)
    with watch(pipe, Stack(), branches):
        renderer.reference(requests[:1])
    guidance = guidance_of(branches.seen, branches.rows, 1)
    return sampler_key(
        pipe.scheduler, guidance, [branches.call, *calls], [each.arguments for each in requests]
    )
