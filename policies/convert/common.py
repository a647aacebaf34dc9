"""What the converters share: reading foreign settings strictly, and wrapping one profile as a policy."""

import json
from collections.abc import Mapping
from itertools import compress
from typing import Any, NamedTuple, TypeVar

from cachesmith.policies.base import Frozen
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.forecaster import Row
from cachesmith.policies.gate import Fixed, Interval
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import Reuse, Taylor
from cachesmith.policies.schedule import from_steps, mask

Settings = TypeVar("Settings", bound=Frozen)


class Converted(NamedTuple):
    """A policy bound to no model, and one sentence for every setting that has no exact counterpart."""

    policy: Policy
    notes: tuple[str, ...] = ()


def parse_settings(
    kind: type[Settings], raw: object, subject: str, aliases: Mapping[str, str] | None = None
) -> Settings:
    """Validate foreign settings; an unknown field, a wrong type or value is refused with its name.

    aliases: what fields are called in the file, where a class may not have such a field.
    """
    known = [(aliases or {}).get(name, name) for name in kind.model_fields]
    if not isinstance(raw, dict):
        raise PolicyError(
            f"{subject} must be a mapping of its fields, got {type(raw).__name__}; give {', '.join(known)} by name"
        )
    for field in raw:
        if field not in known:
            raise PolicyError(
                f"{subject} has no field {str(field)[:80]!r} that can be read; it takes {', '.join(known)}"
            )
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"{subject} holds a value that is no plain data: {error}; change the file"
        ) from None
    with refusing(subject):
        return kind.model_validate_json(text)


def wrap(name: str, profile: Profile, *notes: str) -> Converted:
    """Wrap one profile as a policy bound to no model."""
    return Converted(unbound(profile, name=name), notes)


def letters(computed: list[bool], subject: str, remedy: str = "begin with a 1") -> str:
    """Return the mask of one flag a step. Raises `PolicyError` where the first step is not computed."""
    if not computed or not computed[0]:
        raise PolicyError(
            f"{subject} does not compute the first step, which has nothing to be forecast from; {remedy}"
        )
    return from_steps(compress(range(len(computed)), computed), len(computed))


def row(order: int) -> Row:
    """Return the forecast rule of a Taylor order: 0 reuses."""
    return Taylor(order=order) if order else Reuse()


def order_of(profile: Profile, tool: str, order: int | None) -> int:
    """Return the Taylor order of a profile's forecasts, or the one asked for in its place.

    Raises `PolicyError` where the forecaster is neither reuse nor Taylor and no order was asked for.
    """
    if order is not None:
        return order
    extras = {
        name for name, value in profile.forecaster.model_dump(exclude={"rows"}).items() if value is not None
    }
    parts = [*sorted(extras), *(["overrides"] if profile.overrides else [])]
    if parts:
        raise PolicyError(
            f"{tool} has no {' and no '.join(parts)}; give a Taylor order to export the schedule only"
        )
    if profile.axis != "step":
        raise PolicyError(
            f"{tool} measures time in steps and this profile in {profile.axis}; give a Taylor order instead"
        )
    match profile.forecaster.rows:
        case Reuse():
            return 0
        case Taylor(order=found):
            return found
        case other:
            raise PolicyError(
                f"{tool} knows reuse and Taylor, not the forecaster {other.kind!r}; "
                "give a Taylor order to export the schedule only"
            )


def masks_of(profile: Profile, tool: str, steps: int) -> dict[str | None, str]:
    """Return a static gate's masks: of a group with a schedule of its own, and of all others (None)."""
    match profile.gate:
        case Fixed(groups=groups) as gate:
            return {None: mask(gate, steps)} | {name: mask(gate, steps, name) for name in groups}
        case Interval() as gate:
            return {None: mask(gate, steps)}
        case gate:
            raise PolicyError(
                f"{tool} takes a schedule and the gate {gate.kind!r} decides while sampling; "
                "export a profile with a fixed or interval gate"
            )


def need_steps(steps: int | None, subject: str) -> int:
    """Return the number of steps. Raises `PolicyError` where nobody said it."""
    if steps is None:
        raise PolicyError(
            f"{subject} does not say the number of sampler steps; give it with --num-inference-steps"
        )
    return steps


def without_none(raw: Any) -> dict[str, Any]:
    """Leave out what is None: every tool here reads a missing field as its default."""
    return {name: value for name, value in raw.items() if value is not None}
