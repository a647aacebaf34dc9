"""What a forecast step costs next to a computed one, so that a profile's promise is about time and not only NFC."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from cachesmith.calibrate.score_cache import Memo
from cachesmith.policies import Fixed, Forecaster, Observed, Profile, Taylor, Units, unbound
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request
from cachesmith.sampling.timing import elapsed, interleaved

EFFICIENCY = 0.85
"""A profile's modelled speed-up is at least this share of steps / NFC."""

MASK = "CCFFFFFF"
REPEATS = 3


@dataclass(frozen=True)
class CostModel:
    """Time of one forecast step, in computed steps, by granularity and by whether a magnitude rule is used."""

    forecast: dict[tuple[str, bool], float]

    def efficiency(self, profile: Profile, nfc: float, steps: int) -> float:
        """Modelled speed-up of a profile divided by steps / nfc."""
        each = self.forecast[profile.units.kind, profile.forecaster.magnitude is not None]
        return nfc / (nfc + (steps - nfc) * each)


def measure_costs(
    renderer: Renderer, requests: Sequence[Request], granularities: Sequence[Units], memo: Memo
) -> CostModel:
    """Time short runs of every granularity against uncached ones, in turns, so that a busy machine slows both.

    What `memo` holds is not measured again: a resumed calibration judges as it did before.
    """
    short = Renderer(renderer.pipe, len(MASK), renderer.batch, **renderer.common)
    kinds = [(units, magnitude) for units in granularities for magnitude in (None, Observed())]
    calls = {"uncached": partial(_seconds, short, requests, None)}
    for units, magnitude in kinds:
        profile = Profile(
            units=units,
            gate=Fixed(mask=MASK),
            forecaster=Forecaster(rows=Taylor(order=1), magnitude=magnitude),
        )
        calls[_name(profile)] = partial(_seconds, short, requests, profile)
    if any(memo.get(name) is None for name in calls):
        for name, values in interleaved(calls, REPEATS).items():
            memo.put(name, list(values))
    seconds = {name: median(memo.get(name) or []) for name in calls}
    step = seconds["uncached"] / len(MASK)
    saved = {
        name: (seconds["uncached"] - value) / (MASK.count("F") * step) for name, value in seconds.items()
    }
    return CostModel(
        {(u.kind, m is not None): max(0.0, 1 - saved[f"{u.kind} {m is not None}"]) for u, m in kinds}
    )


def _name(profile: Profile) -> str:
    return f"{profile.units.kind} {profile.forecaster.magnitude is not None}"


def _seconds(renderer: Renderer, requests: Sequence[Request], profile: Profile | None) -> float:
    device = renderer.pipe.device
    if profile is None:
        return elapsed(partial(renderer, requests), device)
    with apply(renderer.pipe, unbound(profile)):
        return elapsed(partial(renderer, requests), device)
