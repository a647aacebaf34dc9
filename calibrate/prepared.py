"""What every profile of a calibration is made from."""

from dataclasses import dataclass

from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.cost.plan import BudgetPlan
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.calibrate.probe import Shape
from cachesmith.sampling.render import Renderer


@dataclass(frozen=True)
class Prepared:
    """The uncached samples and a renderer, what the model looks like, what may be spent, and where it is noted.

    key: names everything that the samples depend on.
    """

    renderer: Renderer
    shards: Shards
    shape: Shape
    plan: BudgetPlan
    ledger: Ledger
    key: str
