"""`report.json`: what a report measured, for the card and for scripts."""

from pathlib import Path

from pydantic import Field

from cachesmith.policies import PolicyError
from cachesmith.policies.base import Frozen
from cachesmith.policies.errors import refusing

FACTS_FILE = "report.json"
FRONT = "front_seconds.png"
PAGE = "report.html"


class ProfileFacts(Frozen):
    """One profile: seconds a sample, PSNR in dB of every held-out sample, and the worst of them."""

    seconds: float = Field(gt=0)
    psnr: tuple[float, ...] = Field(min_length=1)

    @property
    def worst(self) -> float:
        """The lowest PSNR."""
        return min(self.psnr)


class Facts(Frozen):
    """What was measured. `facts`: what was calibrated and on what, in words; `accelerators`: GPUs held, 0 on a CPU."""

    format: int = Field(default=1, ge=1, le=1)
    policy: str
    facts: dict[str, str]
    calibration_seconds: float = Field(ge=0)
    accelerators: int = Field(ge=0)
    command: str
    uncached_seconds: float = Field(gt=0)
    measured_on: str
    profiles: dict[str, ProfileFacts]


def read_facts(folder: Path, policy_id: str) -> Facts:
    """Read the facts of a report's folder. Raises `PolicyError` where there are none, or of another policy."""
    path = folder / FACTS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"cannot read {path}: {error}; give the folder that `cachesmith calibrate --report` wrote"
        ) from None
    with refusing(str(path)):
        facts = Facts.model_validate_json(text)
    if facts.policy != policy_id:
        raise PolicyError(
            f"the report in {folder} is of policy {facts.policy}, this one is {policy_id}; give its own report"
        )
    return facts
