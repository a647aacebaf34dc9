"""All samples, wherever they are: what is asked of each shard, and what its answers add up to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.descent import Point
from cachesmith.calibrate.closed_loop.equations import Equations
from cachesmith.calibrate.closed_loop.walk import Start
from cachesmith.calibrate.fleet.groups import Group, shared_out
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.objective import Objective
from cachesmith.policies import Policy
from cachesmith.progress import Advance


class _Call(NamedTuple):
    """A method of `Shard`, and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


class Worker(Protocol):
    """Whoever has a shard."""

    def __call__(self, call: _Call) -> Any:
        """Have the shard do it, and return its answer."""


class InProcess:
    """A shard of this very process."""

    def __init__(self, shard: Shard):
        self._shard = shard

    def __call__(self, call: _Call) -> Any:
        """Do it."""
        return getattr(self._shard, call.name)(*call.arguments)


class Shards:
    """The samples of a calibration, in groups, shared out among workers.

    device: where sums are made and solved.
    What is given or returned for each sample [N] is in the order of the groups in question, whoever has them.
    """

    def __init__(self, groups: Sequence[Group], workers: Sequence[Worker], device: torch.device):
        self.groups, self.workers, self.device = groups, workers, device
        self._held = shared_out(groups, len(workers))
        self._places: list[int] = []
        self._order: dict[int, list[int]] = {}

    def references(self, sampled: Advance) -> int:
        """Sample all groups that were not yet; `sampled(samples)`. Return the steps that the sampler took."""
        steps = 0
        calls = {w: [_Call("reference", (p,)) for p in held] for w, held in enumerate(self._held) if held}
        for _, answer in self._run(calls):
            steps = answer.steps
            sampled(answer.sampled)
        return steps

    def begin(self, places: Sequence[int], start: Start, folds: Tensor) -> None:
        """Begin a walk of the groups at `places`; folds: of their samples [N]."""
        self._places = [*places]
        self._order = self._standing([n for place in places for n in self.groups[place].numbers])
        self._all({w: _Call("begin", (self._of(w), start, folds[rows])) for w, rows in self._order.items()})

    def compute(self, step: int, advance: Advance) -> None:
        """Compute a step of all samples of the walk; `advance(samples)`."""
        calls = {w: [_Call("compute", (step, place)) for place in self._of(w)] for w in self._order}
        for _, samples in self._run(calls):
            advance(samples)

    def go(self, segment: Segment, theta: Tensor) -> Tensor:
        """Walk a segment: squared errors at its end [N]."""
        return _in_order(self._order, self._all(dict.fromkeys(self._order, _Call("go", (segment, theta)))))

    def keep(self) -> None:
        """Of all walks of a segment, the last is the one to settle for."""
        self._all(dict.fromkeys(self._order, _Call("keep")))

    def settle(self) -> None:
        """Go on from where the walk that was kept ended."""
        self._all(dict.fromkeys(self._order, _Call("settle")))

    def equations(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> Equations:
        """Normal equations of a segment, summed over all samples; weights [N]; share: of the tokens."""
        calls = {
            w: [_Call("equations", (segment, theta, weights[rows], share))] for w, rows in self._order.items()
        }
        total: Equations | None = None
        for _, part in self._run(calls):
            total = part.to(self.device) if total is None else total.merge(part)
        assert total is not None, "a walk has samples"
        return total

    def scores(self, objective: Objective) -> Tensor:
        """Scores of the walk's samples [N]."""
        return _in_order(self._order, self._all(dict.fromkeys(self._order, _Call("scores", (objective,)))))

    def gradients(
        self, numbers: Sequence[int], point: Point, advance: Advance
    ) -> tuple[list[Tensor], Tensor]:
        """Of the samples with these numbers: see `descent.gradients`; `advance(samples)`."""
        order, answers = self._standing(numbers), dict[int, tuple[list[Tensor], Tensor]]()
        for w, answer in self._run({w: [_Call("gradients", (numbers, point))] for w in order}):
            answers[w] = answer
            advance(len(order[w]))
        grads = [
            _in_order(order, {w: each[0][k].to(self.device) for w, each in answers.items()})
            for k in range(len(point.segments))
        ]
        return grads, _in_order(order, {w: each[1].T.cpu() for w, each in answers.items()}).T

    def quality(self, policy: Policy) -> tuple[Tensor, float]:
        """Closed-loop PSNR in dB of all samples [N], and full computations, a mean over them."""
        order = self._standing([number for group in self.groups for number in group.numbers])
        answers = self._all(dict.fromkeys(order, _Call("quality", (policy,))))
        samples = _in_order(order, {w: each[0] for w, each in answers.items()})
        return samples, sum(len(order[w]) * each[1] for w, each in answers.items()) / len(samples)

    def _of(self, worker: int) -> list[int]:
        """Of the walk's groups, those that a worker has samples of."""
        return [place for place in self._places if place in self._held[worker]]

    def _standing(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """Each worker that has any of these samples, and where its own stand among them, in its order."""
        standing = {number: row for row, number in enumerate(numbers)}
        order = {
            worker: [standing[n] for group in held.values() for n in group.numbers if n in standing]
            for worker, held in enumerate(self._held)
        }
        return {worker: rows for worker, rows in order.items() if rows}

    def _all(self, calls: Mapping[int, _Call]) -> dict[int, Any]:
        """One call of each worker that is named."""
        return dict(self._run({worker: [call] for worker, call in calls.items()}))

    def _run(self, calls: Mapping[int, Sequence[_Call]]) -> Iterator[tuple[int, Any]]:
        """Each worker's calls, one after another: who answered, and what."""
        for worker, own in calls.items():
            for call in own:
                yield worker, self.workers[worker](call)


def _in_order(order: Mapping[int, list[int]], parts: Mapping[int, Tensor]) -> Tensor:
    """Rows of several workers, each put where it stands."""
    first = next(iter(parts.values()))
    total = first.new_empty(sum(map(len, parts.values())), *first.shape[1:])
    for worker, rows in parts.items():
        total[order[worker]] = rows.to(total)
    return total
