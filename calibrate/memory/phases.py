"""Peak memory of every phase of a calibration: arithmetic on sizes of one step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cachesmith.calibrate.closed_loop.axes import AXES, RAW, TAPS, segments
from cachesmith.calibrate.closed_loop.design import TOKENS_A_SAMPLE
from cachesmith.calibrate.closed_loop.fit import FOLDS
from cachesmith.calibrate.cost.plan import BudgetPlan
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.memory.sizes import Sizes

FLOAT_SIZE = 4
"""Bytes of a number in what is summed."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes at most in one phase."""

    name: str
    device: int
    host: int


def phases(sizes: Sizes, plan: BudgetPlan, masks: Sequence[str], where: Placement) -> tuple[PhaseMemory, ...]:
    """Peak bytes by phase. masks: the schedule of each profile, one lane's letters or with steps by half (H)."""
    held = _Held(sizes, plan, masks, where)
    return tuple(
        PhaseMemory(name, device, host)
        for name, device, host in (
            ("references", held.sampling(), held.references()),
            ("least squares", held.least_squares(), held.host_of_fit()),
            *((("gradients", held.gradients(), held.host_of_gradients()),) if plan.iterations else ()),
            ("measuring", held.sampling() + held.policies(), held.references()),
        )
    )


class _Held:
    def __init__(self, sizes: Sizes, plan: BudgetPlan, masks: Sequence[str], where: Placement):
        self.sizes, self.plan, self.masks, self.where = sizes, plan, masks, where
        self.lanes = 2 if any("H" in mask for mask in masks) else 1
        # each stream has equations of its own, which are solved one after another
        grams = [FLOAT_SIZE * (self.lanes * AXES * each.channels) ** 2 for each in sizes.streams]
        self.gram, self.largest = sum(grams), max(grams)
        # numbers of the drawn tokens of a sample
        self.drawn = sum(min(TOKENS_A_SAMPLE, each.tokens) * each.channels for each in sizes.streams)
        # inputs and features of the last steps, and what the blocks returned in the last
        self.history = sizes.feature * (2 * TAPS + 1)

    def weights(self) -> int:
        """Of the components that are on the device while the denoiser computes."""
        if not self.where.offload:
            return sum(self.sizes.weights.values())
        return max(self.sizes.weights.values())

    def sampling(self) -> int:
        """Uncached runs; the decoder sees one sample at a time, after the last step."""
        batch, each = self.where.batch, self.sizes
        path = each.latents * (self.plan.steps + 1)
        step = each.computed.forward + each.prompt
        return self.weights() + batch * path + max(batch * step, each.decode + batch * each.image)

    def least_squares(self) -> int:
        """The largest of a computed step, the equations' graph, and their solution."""
        each, batch = self.sizes, self.where.batch
        # what all samples remember, or those in hand
        samples = self.plan.samples if self.where.history else batch
        rest = self.weights() + samples * self.history
        run = batch * (each.latents * (self.plan.steps + 1) + each.prompt)
        computed = run + batch * each.computed.forward
        return rest + max(computed, run + self._graph() + self._summed(), self._solved())

    def _graph(self) -> int:
        """A segment of forecasts with a graph, and what one unit of each unknown adds to them."""
        longest = max(b - a for mask in self.masks for a, b in segments(mask)) - 1
        changes = longest * self.sizes.rows * AXES * self.drawn * FLOAT_SIZE
        adjoints = longest * self.sizes.feature
        # a forecast, what goes into it, what its tail makes of it, and what guidance and the sampler do
        graph = longest * (self.sizes.tail + 3 * self.sizes.feature + 2 * self.sizes.latents)
        return self.where.batch * (graph + changes + adjoints)

    def _summed(self) -> int:
        """Rows of the equations of a batch, with those before them, and the grams of its folds."""
        rows = self.lanes * AXES * self.drawn * FLOAT_SIZE
        return 2 * self.where.batch * rows + min(self.where.batch, FOLDS) * self.gram

    def _solved(self) -> int:
        """A stream's sum of all folds, and that without one, in whose place its factor is made."""
        return 2 * self.largest

    def gradients(self) -> int:
        """A cached run with its graph, what is remembered meanwhile, and one step's backward pass."""
        each, batch, on_host = self.sizes, self.where.gradient_batch, self.where.graph_on_host
        step = each.recomputed if self.where.recomputed else each.computed
        graph = self.history if on_host else self._run_graph()
        weights = len(self.masks[0]) * RAW * self.lanes * each.channels * FLOAT_SIZE
        run = each.latents * (self.plan.steps + 1) + each.prompt
        remembered = self.plan.samples * self.history if self.where.history else 0
        return (
            self.weights() + remembered + batch * (graph + step.backward + run + 2 * weights) + self.largest
        )

    def _run_graph(self) -> int:
        """What one sample's backward pass needs, from the second computed step on."""
        each, most = self.sizes, 0.0
        step = each.recomputed if self.where.recomputed else each.computed
        for mask in self.masks:
            computed = mask.count("C") + mask.count("H") / 2 - 1
            forecast = len(mask) - mask.count("C") - mask.count("H") / 2
            graph = computed * (step.graph + 2 * each.feature) + forecast * (each.tail + each.feature)
            most = max(most, graph)
        return int(most)

    def policies(self) -> int:
        """A policy's weights, and what its runs remember."""
        steps, lanes = len(self.masks[0]), self.lanes
        return steps * lanes * RAW * self.sizes.channels * FLOAT_SIZE + self.where.batch * self.history

    def references(self) -> int:
        """Paths and pictures of the fitting samples, and of those in hand."""
        each = self.sizes
        kept = each.latents * (self.plan.steps + 1) + each.image * each.itemsize // FLOAT_SIZE
        off = sum(each.weights.values()) if self.where.offload else 0
        return off + self.plan.samples * kept

    def host_of_fit(self) -> int:
        """What least squares leave, and grams by fold; results of a segment are there twice while it is walked."""
        longest = max(b - a for mask in self.masks for a, b in segments(mask)) - 1
        return self._host_after_fit() + FOLDS * self.gram + self.plan.samples * self.sizes.result * longest

    def host_of_gradients(self) -> int:
        """What least squares leave, and a run's graph where that waits here."""
        graph = self.where.gradient_batch * self._run_graph() if self.where.graph_on_host else 0
        return self._host_after_fit() + graph

    def _host_after_fit(self) -> int:
        """References, histories that rest here, what runs returned, and factors of all segments."""
        history = 0 if self.where.history else self.plan.samples * self.history
        results = self.plan.samples * self.sizes.result * self.plan.steps
        factors = max(sum(letter != "F" for letter in mask) for mask in self.masks)
        return self.references() + history + results + factors * self.gram


def placed(
    sizes: Sizes,
    plan: BudgetPlan,
    masks: Sequence[str],
    free: int,
    wanted: Placement,
    least: int = 1,
    twice: bool = True,
) -> Placement:
    """The first of ever slower ways, from `wanted` on, whose peak on the device is within `free` bytes; else the last.

    Fewer samples at once, what is remembered of samples on the host, and blocks computed twice for their gradients, at
    last with their inputs on the host. least: samples at once, if there have to be so many; twice: whether blocks may
    be computed twice.
    """
    found = wanted
    while peak(sizes, plan, masks, found) > free:
        over = _peak_of("gradients", sizes, plan, masks, found) > free
        if found.history and plan.samples > found.batch:
            found = replace(found, history=False)
        elif not over and found.batch > least:
            found = replace(found, batch=max(least, found.batch // 2))
        elif over and found.gradient_batch > 1:
            found = replace(found, gradient_batch=found.gradient_batch // 2)
        elif over and not found.recomputed and twice:
            found = replace(found, recomputed=True)
        elif over and found.recomputed and not found.graph_on_host:
            found = replace(found, graph_on_host=True)
        elif found.batch > least:
            found = replace(found, batch=max(least, found.batch // 2))
        else:
            break
    return found


def peak(sizes: Sizes, plan: BudgetPlan, masks: Sequence[str], where: Placement) -> int:
    """Bytes on the device at most, in any phase."""
    return max(phase.device for phase in phases(sizes, plan, masks, where))


def _peak_of(name: str, sizes: Sizes, plan: BudgetPlan, masks: Sequence[str], where: Placement) -> int:
    return max((p.device for p in phases(sizes, plan, masks, where) if p.name == name), default=0)
