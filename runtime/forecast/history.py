"""What is remembered of one unit on one branch between computed steps."""

from dataclasses import dataclass, field

from torch import Tensor

from cachesmith.runtime.features import Feature, alike


@dataclass
class TokenState:
    """What token-wise caching knows of one unit since its newest computed step. B: samples, N: tokens, D: channels.

    marks: age or cluster of every token [B, N]; shift: what its forecast was last off by [B, N, D]; reference: the
    input it was last computed from [B, N, D]. The last two are unknown until tokens were computed.
    """

    marks: Tensor
    shift: Tensor | None = None
    reference: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Everything held."""
        return [t for t in (self.marks, self.shift, self.reference) if t is not None]


@dataclass
class History:
    """Newest first: computed steps, what is cached of them, their inputs, and RFE's scale [B] a stream."""

    steps: list[int] = field(default_factory=list)
    outputs: list[Feature] = field(default_factory=list)
    inputs: list[Feature] = field(default_factory=list)
    scales: tuple[Tensor, ...] | None = None
    tokens: TokenState | None = None

    def push(self, step: int, outputs: Feature, inputs: Feature, taps: int, input_taps: int) -> None:
        """Remember a computed step, dropping what no forecast reads any more."""
        self.steps = [step, *self.steps[: taps - 1]]
        self.outputs = [outputs, *self.outputs[: taps - 1]]
        self.inputs = [inputs, *self.inputs[: input_taps - 1]] if input_taps else []
        self.tokens = None

    def drop(self, step: int) -> None:
        """Forget `step`, if it is the newest: its call is made again."""
        if self.steps[:1] == [step]:
            del self.steps[:1], self.outputs[:1], self.inputs[:1]

    def clear(self) -> None:
        """Forget everything: the next step is computed."""
        self.steps, self.outputs, self.inputs, self.scales, self.tokens = [], [], [], None, None

    def fits(self, inputs: Feature) -> bool:
        """Whether what is remembered can be combined with `inputs`."""
        if self.inputs:
            return alike(self.inputs[0], inputs)
        return bool(self.outputs) and all(
            a.shape[:-1] == b.shape[:-1] and a.dtype == b.dtype and a.device == b.device
            for a, b in zip(self.outputs[0], inputs, strict=True)
        )

    def tensors(self) -> list[Tensor]:
        """Everything held."""
        features = [t for group in (*self.outputs, *self.inputs) for t in group]
        tokens = [] if self.tokens is None else self.tokens.tensors()
        return [*features, *(self.scales or ()), *tokens]
