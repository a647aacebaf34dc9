"""SGLang's DPCache schedules, both ways."""

import hashlib
from collections.abc import Mapping
from typing import Any

from cachesmith.policies.convert.common import Converted, masks_of, parse_settings
from cachesmith.policies.convert.final_feature import forecasting, forecasts, lines
from cachesmith.policies.convert.sglang_schedule import (
    OBJECTIVE,
    SCHEMA,
    Predictor,
    Provenance,
    SglangRequest,
    SglangSchedule,
    gaps,
)
from cachesmith.policies.document import Document, SamplerKey
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.policy import Policy
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import Lagrange, Taylor
from cachesmith.policies.schedule import computed_steps, from_steps
from cachesmith.policies.units import Stack

_TOOL = "SGLang's DPCache"
FAR = 1e-3
"""Noise levels that differ by more are told."""

UNBOUND = (
    "a policy keeps the scheduler's class, steps and noise levels of `request`; the server's other conditions ({}) are "
    "yours to keep"
)
RESIDUAL = (
    "SGLang draws the line through what the blocks put out; this policy through what they add to their input"
)


def from_sglang(raw: object, steps: int | None) -> Converted:
    """Read a schedule: the stack's output, forecast by the line through the last two computed ones.

    The policy is bound to the scheduler, its steps and its noise levels, so that another sampler is told.
    """
    schedule = parse_settings(SglangSchedule, raw, "SGLang's schedule", aliases={"schema_": "schema"})
    request = schedule.request
    count = request.num_inference_steps
    if steps not in (None, count):
        raise PolicyError(f"the schedule is for {count} steps, not {steps}; leave --num-inference-steps out")
    mask = from_steps(schedule.full_steps, count)
    profile, arrays = forecasting(mask, lines(mask, "the schedule"))
    scale = request.guidance_scale
    guided = request.do_classifier_free_guidance
    sampler = SamplerKey(
        scheduler=request.scheduler,
        steps=count,
        sigmas=tuple(request.sigmas[:-1]),
        guidance="sequential" if guided else "none",
        guidance_range=(scale, scale) if guided else None,
    )
    document = Document(name="sglang-dpcache", profiles={"default": profile}, sampler=sampler)
    others = ("pipeline", "checkpoint", "height", "width", "quality", "attention_backend", "dtype")
    said = ", ".join(f"{name} {getattr(request, name)}" for name in others)
    return Converted(Policy(document, arrays), (UNBOUND.format(said),))


def to_sglang(
    policy: Policy, profile: Profile, steps: int, order: int | None, like: object
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the schedule of a profile for the request that `like`, a schedule or its `request`, describes.

    Raises `PolicyError` where the profile forecasts otherwise than by a line and no order 1 was asked for, where its
    units are not the whole stack, where it does not compute steps 0 and 1, or where the request is not known.
    """
    if order not in (None, 1):
        raise PolicyError(f"{_TOOL} draws a line, which is order 1; leave --order {order} out")
    if not isinstance(profile.units, Stack):
        raise PolicyError(f"{_TOOL} forecasts all blocks together, not units {profile.units.kind!r}")
    mask = masks_of(profile, _TOOL, steps)[None]
    table = lines(mask, _TOOL)
    notes = _predictor_notes(policy, profile, mask, order, table)
    full = computed_steps(mask)
    request = _request(like, steps)
    lead = next((place for place, step in enumerate(full) if place != step), len(full))
    schedule = SglangSchedule(
        schema=SCHEMA,
        schedule_method="cachesmith",
        predictor=Predictor(),
        objective=OBJECTIVE,
        source_commit=f"cachesmith policy {policy.id}",
        request=request,
        mandatory_full_steps=full[:lead],
        force_last_full=full[-1] == steps - 1,
        max_gap=max(gaps(full, steps)),
        num_full_steps=len(full),
        full_steps=full,
        calibrated_cost=0.0,
        calibration=_provenance(policy),
    )
    return schedule.as_json(), (
        "calibrated_cost is 0: this schedule was not chosen by SGLang's objective, whatever the file has to say of it",
        *notes,
        *_sampler_notes(policy.document.sampler, request),
    )


def _predictor_notes(
    policy: Policy, profile: Profile, mask: str, order: int | None, table: Any
) -> tuple[str, ...]:
    forecaster = profile.forecaster
    plain = forecaster.model_copy(update={"rows": Taylor(order=1)}) == type(forecaster)()
    if forecasts(policy, profile, mask, table):
        return ()
    if plain and profile.axis == "step" and forecaster.rows in (Taylor(order=1), Lagrange(order=1)):
        return (RESIDUAL,)
    if order is None:
        raise PolicyError(
            f"{_TOOL} draws a line through the last two computed steps, and this profile forecasts otherwise; give "
            "--order 1 to export the schedule only"
        )
    return (f"the forecaster {forecaster.rows.kind!r} is left out: SGLang draws a line", RESIDUAL)


def _request(like: object, steps: int) -> SglangRequest:
    if like is None:
        raise PolicyError(
            "SGLang's server compares a schedule with the checkpoint, size, scheduler and attention backend of a "
            "request, which a policy does not hold; give --like FILE, a schedule of SGLang's for the same request"
        )
    inner = like.get("request", like) if isinstance(like, Mapping) else like
    request = parse_settings(SglangRequest, inner, "the request in --like")
    if request.num_inference_steps != steps:
        raise PolicyError(
            f"the request in --like takes {request.num_inference_steps} steps and the profile {steps}; give one of "
            f"{steps} steps"
        )
    return request


def _provenance(policy: Policy) -> Provenance:
    record = policy.document.calibration
    nothing = hashlib.sha256(b"[]").hexdigest()
    return Provenance.model_validate(
        {
            "manifest_sha256": nothing if record is None else record.fitting_prompts,
            "num_samples": 0 if record is None else record.fitting_size,
        }
    )


def _sampler_notes(sampler: SamplerKey | None, request: SglangRequest) -> tuple[str, ...]:
    if sampler is None:
        return ()
    pairs = zip(sampler.sigmas, request.sigmas, strict=False)
    apart = max((abs(ours - theirs) for ours, theirs in pairs), default=0.0)
    notes = []
    if len(sampler.sigmas) != request.num_inference_steps or apart > FAR:
        notes.append("the policy was fitted for other noise levels than the request in --like has")
    if sampler.scheduler != request.scheduler:
        notes.append(f"the policy was fitted for {sampler.scheduler}, the request uses {request.scheduler}")
    return tuple(notes)
