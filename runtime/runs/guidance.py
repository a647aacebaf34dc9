"""One branch of guidance follows the other: the blocks are computed, or forecast, for one half of the batch.

Conditional and unconditional outputs move together. What tells them apart is smaller and changes more slowly than
either, so it needs to be computed less often (FasterCache's observation, arXiv 2410.19355). A runner is shown the
followed branch as the stack of blocks, and the difference of the other branch from it as the unit `guidance`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.features import Feature, alike, difference
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.hooks.runner import (
    COMPUTE_ALL,
    Answer,
    ComputeRows,
    Runner,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.models.units import GuidanceDifference, Unit, guidance_difference
from cachesmith.runtime.stats import UNGUIDED

Computes = Callable[[Unit, Feature], bool]
"""Whether a runner will have a unit computed, for inputs of this shape."""

Holds = Callable[[Feature, Feature], None]
"""Tells whoever counts bytes that what was held as the first is now held as the second."""


def _uncounted(before: Feature, after: Feature) -> None:
    """Nobody counts."""


def guided(runner: Runner, units: tuple[Unit, ...], computes: Computes, holds: Holds = _uncounted) -> Runner:
    """Show `runner` the branches of guidance, if the difference between them is one of `units`."""
    guidance = guidance_difference(units)
    return runner if guidance is None else GuidanceRunner(runner, guidance, computes, holds)


class GuidanceRunner:
    """Stands between the blocks and `runner`, and shows it the branches of guidance.

    `computes` says what `runner` is going to answer, before it is known what to ask it with.
    """

    def __init__(self, runner: Runner, guidance: GuidanceDifference, computes: Computes, holds: Holds):
        self.runner = runner
        self._branches: BranchesInBatch | BranchesInCalls = (
            BranchesInCalls(runner, guidance, computes, holds)
            if guidance.follower == "later"
            else BranchesInBatch(runner, guidance, computes)
        )
        self._first = Tick(-1, None, "")
        self._rows = 0
        self._guided = False

    def begin(self, tick: Tick) -> None:
        """A transformer call. A batch that is not two halves of the same samples is all computed."""
        in_calls = isinstance(self._branches, BranchesInCalls)
        latents = tick.latents
        begins = tick.run != self._first.run
        if begins:
            self._first = replace(tick, latents=None)
            self._rows = len(latents) if latents is not None and not in_calls and _twice(latents) else 0
        if isinstance(self._branches, BranchesInCalls):
            self._branches.begin(leads=tick.branch == self._first.branch, begins=begins)
        else:
            self._branches.rows = self._rows
        self._guided = in_calls or (latents is not None and len(latents) == self._rows)
        self.runner.begin(tick if self._guided else replace(tick, step=None, why=UNGUIDED))

    def units(self, units: tuple[Unit, ...]) -> tuple[Unit, ...]:
        """Those of `units` that the call in hand is made of; none where it is not guided."""
        if not self._guided:
            return ()
        if isinstance(self._branches, BranchesInCalls):
            follows = not self._branches.leads
            return tuple(unit for unit in units if isinstance(unit, GuidanceDifference) == follows)
        return units

    def answer(self, call: UnitCall) -> Answer:
        """What is known of the output without computing it, the rows to compute, or all of it."""
        return self._branches.answer(call) if self._guided else COMPUTE_ALL

    def observe(self, result: UnitResult) -> None:
        """The blocks were computed for all that they were called for."""
        (self._branches if self._guided else self.runner).observe(result)

    def end(self, output: Tensor) -> bool:
        """The transformer returned."""
        return self.runner.end(output)


class BranchesInBatch:
    """The branches are one batch of `rows`: `runner` sees one half as the blocks, the other as the unit `guidance`."""

    def __init__(self, runner: Runner, guidance: GuidanceDifference, computes: Computes):
        self.runner, self.guidance, self.computes = runner, guidance, computes
        self.rows = 0
        self._follower_is_first = guidance.follower == "first"

    def answer(self, call: UnitCall) -> Answer:
        """The whole batch's forecast, the half that is to be computed, or all of it."""
        self._check(call.inputs)
        leading = self._leading(call.inputs)
        if self.computes(self.guidance, leading):
            return COMPUTE_ALL
        answer = self.runner.answer(UnitCall(call.unit, leading))
        if isinstance(answer, UseOutput):
            whole = self._whole(call.inputs, leading, answer.output)
            return COMPUTE_ALL if whole is None else UseOutput(whole)

        def complete(outputs: Feature) -> Feature:
            # a view would keep the other half alive for as long as it is remembered
            self.runner.observe(UnitResult(call.unit, tuple(half.clone() for half in leading), outputs))
            whole = self._whole(call.inputs, leading, outputs)
            if whole is None:
                raise PolicyError(
                    "the difference between the branches of guidance cannot be forecast for this batch; keep its "
                    "shape during a run, or use a profile without a follower"
                )
            return whole

        return ComputeRows(self._rows(call.inputs[0]), len(call.inputs[0]), complete)

    def _check(self, streams: Feature) -> None:
        """Raise `PolicyError` where tokens come before samples: half of the rows is no half of guidance."""
        if any(s.ndim > 2 and len(s) != self.rows == s.shape[1] for s in streams):
            raise PolicyError(
                "the blocks are given tokens before samples, so that no half of a guided batch can be told; use a "
                "profile without a follower"
            )

    def observe(self, result: UnitResult) -> None:
        """All of the batch was computed."""
        leading = tuple(half.clone() for half in self._leading(result.inputs))
        followed = UnitResult(result.unit, leading, self._leading(result.outputs))
        self.runner.observe(followed)
        others = difference(self._following(result.outputs), self._following(result.inputs))
        apart = difference(others, followed.feature)
        self.runner.observe(UnitResult(self.guidance, followed.feature, apart))

    def _whole(self, inputs: Feature, leading: Feature, known: Feature) -> Feature | None:
        """The whole batch's output from the half that is known."""
        following = self._following(inputs)
        others = _follow(self.runner, self.guidance, following, difference(known, leading))
        if others is None:
            return None
        order = (others, known) if self._follower_is_first else (known, others)
        return tuple(torch.cat(pair) for pair in zip(*order, strict=True))

    def _rows(self, tensor: Tensor) -> slice:
        half = len(tensor) // 2
        return slice(half, None) if self._follower_is_first else slice(half)

    def _leading(self, feature: Feature) -> Feature:
        return tuple(tensor[self._rows(tensor)] for tensor in feature)

    def _following(self, feature: Feature) -> Feature:
        return tuple(tensor.chunk(2)[0 if self._follower_is_first else 1] for tensor in feature)


class BranchesInCalls:
    """The branches are calls of their own: the first of a step leads, every other follows.

    What the leading call added is held until the next one.
    """

    def __init__(self, runner: Runner, guidance: GuidanceDifference, computes: Computes, holds: Holds):
        self.runner, self.guidance, self.computes, self.leads = runner, guidance, computes, True
        self._added: Feature = ()
        self._holds = holds

    def begin(self, leads: bool, begins: bool) -> None:
        """The call in hand leads, or follows; a run begins with it, of which nothing is held yet."""
        self.leads = leads
        if begins:
            self._added = ()
        elif leads:
            self._hold(())

    def _hold(self, added: Feature) -> None:
        self._holds(self._added, added)
        self._added = added

    def answer(self, call: UnitCall) -> Answer:
        """The call's forecast, or all of it is to be computed."""
        if not self.leads:
            if not self._added or self.computes(self.guidance, call.inputs):
                return COMPUTE_ALL
            output = _follow(self.runner, self.guidance, call.inputs, self._added)
            return COMPUTE_ALL if output is None else UseOutput(output)
        answer = self.runner.answer(call)
        if isinstance(answer, UseOutput):
            self._hold(difference(answer.output, call.inputs))
        return answer

    def observe(self, result: UnitResult) -> None:
        """The call was computed."""
        if self.leads:
            self.runner.observe(result)
            self._hold(result.feature)
        elif not self._added:
            # the leading call was not whole, and a difference from nothing would be taken for one from its blocks
            self.runner.observe(UnitResult(self.guidance, result.inputs, ()))
        elif alike(result.feature, self._added):
            apart = difference(result.feature, self._added)
            self.runner.observe(UnitResult(self.guidance, self._added, apart))
        else:
            # captions of other lengths: what is remembered fits no later call, which is computed for that reason
            self.runner.observe(UnitResult(self.guidance, result.inputs, result.feature))


def _twice(latents: Tensor) -> bool:
    """Whether a batch holds every sample twice, as guidance makes it. Looks at the device: once a run."""
    return len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))


def _follow(runner: Runner, guidance: GuidanceDifference, inputs: Feature, added: Feature) -> Feature | None:
    """Outputs of the branch that follows, from what the blocks `added` to the other; None where nothing is known."""
    answer = runner.answer(UnitCall(guidance, added))
    if not isinstance(answer, UseOutput):
        return None
    return tuple(
        (now + more).add_(apart) for now, more, apart in zip(inputs, added, answer.output, strict=True)
    )
