"""What every profile of a calibration is made from."""

from dataclasses import dataclass

from cachesmith.calibrate.closed_loop.batch import Uncached
from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.cost.plan import BudgetPlan
from cachesmith.calibrate.probe import Shape
from cachesmith.sampling.render import Renderer


@dataclass(frozen=True)
class Prepared:
    """The uncached samples and their renderer, what the model looks like, what may be spent, and where it is noted.

    key: names everything that the samples depend on.
    """

    renderer: Renderer
    samples: list[Uncached]
    shape: Shape
    plan: BudgetPlan
    ledger: Ledger
    key: str
