"""The fields of SGLang's `sglang-dpcache-schedule-v2`, and the rules its server holds them to.

Source: `python/sglang/multimodal_gen/runtime/cache/dpcache.py` of sgl-project/sglang at commit b9f00c98 (a draft).
"""

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from cachesmith.policies.base import Frozen, Sha256, Text

SCHEMA: Literal["sglang-dpcache-schedule-v2"] = "sglang-dpcache-schedule-v2"
OBJECTIVE: Literal["pact-mean-abs-final-feature-predicted-steps-only-v1"] = (
    "pact-mean-abs-final-feature-predicted-steps-only-v1"
)


class Predictor(Frozen):
    """The line through the last two computed final features."""

    name: Literal["final-feature-linear-extrapolation"] = "final-feature-linear-extrapolation"
    order: Literal[1] = 1
    arithmetic: Literal["feature-dtype-elementwise-v1"] = "feature-dtype-elementwise-v1"


class SglangRequest(Frozen):
    """What a request must be to be served by a schedule: the server compares every field.

    `timesteps` has one value a step; `sigmas` one more, the last being where sampling ends.
    """

    pipeline: Text
    checkpoint: Text
    num_inference_steps: int = Field(ge=2, le=10_000)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    guidance_scale: float
    do_classifier_free_guidance: bool
    quality: Text
    attention_backend: Text | None
    dtype: Literal["bfloat16"]
    scheduler: Text
    scheduler_config_sha256: Text
    timesteps: list[float] = Field(max_length=10_000)
    sigmas: list[float] = Field(max_length=10_001)

    @model_validator(mode="after")
    def _complete(self) -> "SglangRequest":
        steps = self.num_inference_steps
        for name, found, wanted in (
            ("timesteps", len(self.timesteps), steps),
            ("sigmas", len(self.sigmas), steps + 1),
        ):
            if found != wanted:
                raise ValueError(f"{name} has {found} values, expected {wanted}")
        return self


class Provenance(Frozen, extra="allow"):
    """What it was planned on; the server asks for these two, its planner writes more."""

    __pydantic_extra__: dict[str, JsonValue]
    manifest_sha256: Sha256
    num_samples: int = Field(ge=0)


class SglangSchedule(Frozen):
    """The whole file."""

    schema_: Literal["sglang-dpcache-schedule-v2"] = Field(alias="schema")
    schedule_method: Text = "exact-pair-state-dp"
    predictor: Predictor
    objective: Literal["pact-mean-abs-final-feature-predicted-steps-only-v1"]
    source_commit: Text = Field(min_length=1)
    request: SglangRequest
    mandatory_full_steps: list[int] = Field(min_length=2, max_length=10_000)
    force_last_full: bool
    max_gap: int | None = Field(ge=1)
    num_full_steps: int
    full_steps: list[int] = Field(min_length=2, max_length=10_000)
    calibrated_cost: float
    calibration: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> "SglangSchedule":
        full, steps = self.full_steps, self.request.num_inference_steps
        mandatory = self.mandatory_full_steps
        rules = {
            "full_steps must rise and lie within the run": (
                full == sorted(set(full)) and full[0] >= 0 and full[-1] < steps
            ),
            "mandatory_full_steps must be the steps 0, 1, ... that full_steps begins with": (
                mandatory == list(range(len(mandatory))) and full[: len(mandatory)] == mandatory
            ),
            "num_full_steps must be the number of full_steps": self.num_full_steps == len(full),
            "force_last_full needs the last step in full_steps": not self.force_last_full
            or full[-1] == steps - 1,
            "a gap between full_steps, or to the end, exceeds max_gap": (
                self.max_gap is None or max(gaps(full, steps)) <= self.max_gap
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)
        return self

    def as_json(self) -> dict[str, Any]:
        """Return the file's content, in SGLang's own order of keys."""
        return self.model_dump(by_alias=True)


def gaps(full: list[int], steps: int) -> list[int]:
    """Steps from each full step to the next one, and from the last to the end."""
    return [later - earlier for earlier, later in pairwise([*full, steps])]
