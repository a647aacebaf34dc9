"""All samples, wherever they are: what is asked of each shard, and what its answers add up to."""

from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.descent import Point
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations
from cachesmith.calibrate.closed_loop.walk import Start
from cachesmith.calibrate.fleet.groups import Group, shared_out
from cachesmith.calibrate.fleet.remote import Remote
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.wire import Call
from cachesmith.calibrate.objective import Objective
from cachesmith.policies import Policy
from cachesmith.progress import Advance

_Answer = tuple[int, Any, Exception | None]


class InProcess:
    """A shard of this very process."""

    def __init__(self, shard: Shard):
        self._shard = shard

    def __call__(self, call: Call) -> Any:
        """Do it."""
        return getattr(self._shard, call.name)(*call.arguments)


Worker = InProcess | Remote
"""Whoever has a shard: is called with a `Call`, and returns its answer."""


class Shards:
    """The samples of a calibration, in groups, shared out among workers.

    device: where sums are made and solved.
    What is given or returned for each sample [N] is in the order of the groups in question, whoever has them.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        workers: Sequence[Worker],
        device: torch.device,
        count: int | None = None,
    ):
        self.groups, self.workers, self.device = groups, workers, device
        self._held = shared_out(groups, count or len(workers))
        self._order: dict[int, list[int]] = {}

    def close(self) -> None:
        """End the workers that are processes of their own."""
        for worker in self._remote:
            worker.close()

    @property
    def repeated(self) -> float:
        """Forwards of one sample and step that were lost with a worker and computed again."""
        return sum(worker.repeated for worker in self._remote)

    @property
    def _remote(self) -> list[Remote]:
        return [worker for worker in self.workers if isinstance(worker, Remote)]

    def references(self, sampled: Advance) -> int:
        """Sample all groups that were not yet; `sampled(samples)`. Return the steps that the sampler took."""
        steps = 0
        calls = {w: [Call("reference", (p,)) for p in held] for w, held in enumerate(self._held) if held}
        for _, answer in self._run(calls):
            steps = answer.steps
            sampled(answer.sampled)
        return steps

    def moves(self, scales: Tensor) -> Tensor:
        """See `Uncached.moves`: [N, steps, steps]."""
        order = self._everywhere()
        return _in_order(order, self._all(dict.fromkeys(order, Call("moves", (scales,)))))

    def begin(self, start: Start, folds: Tensor) -> None:
        """Begin a walk of all samples; folds: of each [N]."""
        self._start, self._order = start, self._everywhere()
        self._all({w: Call("begin", (start, folds[rows])) for w, rows in self._order.items()})

    def compute(self, step: int, advance: Advance) -> None:
        """Compute a step of all samples of the walk; `advance(samples)`."""
        calls = {w: [Call("compute", (step, place)) for place in self._held[w]] for w in self._order}
        for _, samples in self._run(calls):
            advance(samples)

    def go(self, segment: Segment, theta: Tensor) -> Tensor:
        """Walk a segment: squared errors at its end [N]."""
        return _in_order(self._order, self._all(dict.fromkeys(self._order, Call("go", (segment, theta)))))

    def settle(self) -> None:
        """Go on from where the last walk of a segment ended."""
        self._all(dict.fromkeys(self._order, Call("settle")))

    def equations(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> StackEquations:
        """Normal equations of a segment, summed over all samples; weights [N]; share: of the tokens."""
        self._all(
            {w: Call("equations", (segment, theta, weights[rows], share)) for w, rows in self._order.items()}
        )
        # one after another and in order: they are large, and sums of floats depend on it
        parts = (self.workers[worker](Call("sums")) for worker in self._order)
        first = next(parts)
        if first.packed:
            start = self._start
            total = StackEquations(start.folds, start.schedule, start.channels, self.device).merge(first)
        else:
            total = first.to(self.device)
        for part in parts:
            total.merge(part)
        return total

    def scores(self, objective: Objective) -> Tensor:
        """Scores of the walk's samples [N]."""
        return _in_order(self._order, self._all(dict.fromkeys(self._order, Call("scores", (objective,)))))

    def gradients(
        self, numbers: Sequence[int], point: Point, advance: Advance
    ) -> tuple[list[Tensor], Tensor]:
        """Of the samples with these numbers: see `descent.gradients`; `advance(samples)`."""
        order, answers = self._standing(numbers), dict[int, tuple[list[Tensor], Tensor]]()
        for w, answer in self._run({w: [Call("gradients", (numbers, point))] for w in order}):
            answers[w] = answer
            advance(len(order[w]))
        grads = [
            _in_order(order, {w: each[0][k].to(self.device) for w, each in answers.items()})
            for k in range(len(point.segments))
        ]
        return grads, _in_order(order, {w: each[1].T.cpu() for w, each in answers.items()}).T

    def drift(
        self, numbers: Sequence[int], schedule: Schedule, channels: tuple[int, ...], advance: Advance
    ) -> Tensor:
        """Of the samples with these numbers: see `schedules.drift`; `advance(samples)`."""
        order, answers = self._standing(numbers), dict[int, Tensor]()
        for w, answer in self._run({w: [Call("drift", (numbers, schedule, channels))] for w in order}):
            answers[w] = answer
            advance(len(order[w]))
        return _in_order(order, answers)

    def quality(self, policy: Policy) -> tuple[Tensor, float]:
        """Closed-loop PSNR in dB of all samples [N], and full computations, a mean over them."""
        order = self._everywhere()
        answers = self._all(dict.fromkeys(order, Call("quality", (policy,))))
        samples = _in_order(order, {w: each[0] for w, each in answers.items()})
        return samples, sum(len(order[w]) * each[1] for w, each in answers.items()) / len(samples)

    def _everywhere(self) -> dict[int, list[int]]:
        """`_standing` of all samples."""
        return self._standing([number for group in self.groups for number in group.numbers])

    def _standing(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """Each worker that has any of these samples, and where its own stand among them, in its order."""
        standing = {number: row for row, number in enumerate(numbers)}
        order = {
            worker: [standing[n] for group in held.values() for n in group.numbers if n in standing]
            for worker, held in enumerate(self._held)
        }
        return {worker: rows for worker, rows in order.items() if rows}

    def _all(self, calls: Mapping[int, Call]) -> dict[int, Any]:
        """One call of each worker that is named."""
        return dict(self._run({worker: [call] for worker, call in calls.items()}))

    def _run(self, calls: Mapping[int, Sequence[Call]]) -> Iterator[tuple[int, Any]]:
        """Each worker's calls, one after another, and all workers at once: who answered, and what, as it comes.

        An error of a worker is raised once nobody computes any more.
        """
        answers: SimpleQueue[_Answer | None] = SimpleQueue()
        away = {w: own for w, own in calls.items() if isinstance(self.workers[w], Remote)}
        threads = [Thread(target=self._lead, args=(w, own, answers), daemon=True) for w, own in away.items()]
        for thread in threads:
            thread.start()
        failed: list[Exception] = []
        for worker in calls.keys() - away.keys():
            for call in calls[worker]:
                yield worker, self.workers[worker](call)
        computing = len(threads)
        while computing:
            if (answer := answers.get()) is None:
                computing -= 1
            else:
                yield from _told(answer, failed)
        if failed:
            raise failed[0]

    def _lead(self, worker: int, calls: Sequence[Call], answers: "SimpleQueue[_Answer | None]") -> None:
        for call in calls:
            try:
                answers.put((worker, self.workers[worker](call), None))
            except Exception as error:
                answers.put((worker, None, error))
                break
        answers.put(None)


def _told(answer: _Answer, failed: list[Exception]) -> Iterator[tuple[int, Any]]:
    worker, found, error = answer
    if error is None:
        yield worker, found
    else:
        failed.append(error)


def _in_order(order: Mapping[int, list[int]], parts: Mapping[int, Tensor]) -> Tensor:
    """Rows of several workers, each put where it stands."""
    first = next(iter(parts.values()))
    total = first.new_empty(sum(map(len, parts.values())), *first.shape[1:])
    for worker, rows in parts.items():
        total[order[worker]] = rows.to(total)
    return total
