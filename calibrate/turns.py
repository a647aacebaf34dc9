"""Which denoisers a pipeline calls, and when each takes over: from a run with no block computed."""

from collections.abc import Sequence

from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.policies import MAIN, PolicyError, Stack
from cachesmith.runtime import Answer, UnitCall, UnitResult, UseOutput, Watcher
from cachesmith.runtime.hooks.watch import watch_each
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class _Turn(Watcher):
    """Notes the steps at which one denoiser is called, and its channels; has no block computed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: set[int] = set()
        self.channels: set[tuple[int, ...]] = set()

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        if self._tick.step is not None:
            self.steps.add(self._tick.step)
        self.channels.add(tuple(tensor.shape[-1] for tensor in call.inputs))
        return UseOutput(call.inputs)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


def turns_of(
    renderer: Renderer, requests: Sequence[Request], channels: tuple[int, ...], first: int
) -> dict[str, int]:
    """The denoisers of a run by name, in the order in which they take over, and the step at which each does.

    channels: of each stream of the first one's blocks; first: the step at which the run begins. Raises `PolicyError`
    where denoisers do not take turns, or others have other channels.
    """
    pipe = renderer.pipe
    turns = {name: _Turn() for name in denoisers(pipe)}
    if len(turns) == 1:
        return {MAIN: first}
    with (
        watch_each(pipe, Stack(), lambda name, _: turns[name]),
        replayed(pipe, len(requests), [], renderer.steps),
    ):
        renderer(requests)
    called = sorted(
        ((name, turn) for name, turn in turns.items() if turn.steps), key=lambda each: min(each[1].steps)
    )
    names, starts = [name for name, _ in called], [min(turn.steps) for _, turn in called]
    kind = type(pipe).__name__
    if [turn.steps for _, turn in called] != [
        {*range(a, b)} for a, b in zip(starts, [*starts[1:], renderer.steps], strict=True)
    ]:
        raise PolicyError(
            f"{' and '.join(names)} of {kind} do not take turns, one after the other; only denoisers that do can be "
            "calibrated together"
        )
    if any(turn.channels != {channels} for _, turn in called):
        raise PolicyError(
            f"the blocks of {' and '.join(names)} differ in their channels, so they cannot be calibrated together"
        )
    if names[0] != MAIN:
        raise PolicyError(f"{kind} does not begin with {MAIN}, so it cannot be calibrated")
    return dict(zip(names, starts, strict=True))
