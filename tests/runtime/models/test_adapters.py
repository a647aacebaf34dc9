"""One conformance suite for every class of diffusers: it is supported when its tiny version passes."""

from collections import Counter
from functools import cache
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from tests.tiny import policy
from torch import Tensor, nn

from cachesmith.policies import (
    Fixed,
    Modules,
    Observed,
    PolicyError,
    Relational,
    Reuse,
    Segments,
    Stack,
    Taylor,
)
from cachesmith.runtime import ADAPTERS, UnitResult, adapter_for, apply, learn, resolve_units
from cachesmith.runtime.models.units import block_lists, network_units
from cachesmith.runtime.plan.cache_size import cache_bytes
from cachesmith.runtime.runs.memory import Memory
from cachesmith.zoo import NO_ROW, ZOO
from cachesmith.zoo.survey import TIME

# diffusers' own, of some of the models
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:CPU Autocast"),
    pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element"),
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
]
STEPS = 8
UNITS: list[Any] = [Stack(), Segments(starts=(0, 2)), Modules()]
SUPPORTED = [name for name in ZOO if name not in NO_ROW]
SKIPPING = [name for name, adapter in ADAPTERS.items() if adapter.skips]
MODULAR = [name for name, adapter in ADAPTERS.items() if all(entry.modules for entry in adapter.lists)]


def named(name: str, *rest: Any, id: str | None = None) -> Any:
    return pytest.param(name, *rest, id=id or name, marks=[pytest.mark.slow] * ZOO[name].heavy)


CLASSES = [named(name) for name in SUPPORTED]
CASES = [
    named(name, units, id=f"{name}-{getattr(units, 'starts', units.kind)}")
    for name in SUPPORTED
    for units in UNITS
    if (name in MODULAR or not isinstance(units, Modules))
    and (isinstance(units, Stack) or name not in SKIPPING)
]


@cache
def model(name: str) -> Any:
    tiny = ZOO[name]
    transformer = tiny.build(name)
    if name not in ADAPTERS:
        learn(transformer, lambda: tiny.call(transformer, tiny.noise(), TIME))
    return transformer


def sample(name: str, scheduler: Any) -> Tensor:
    """Eight steps of the model's pipeline, in miniature."""
    tiny, transformer = ZOO[name], model(name)
    scheduler.set_timesteps(STEPS)
    x = tiny.noise()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(tiny.velocity(transformer, x, t), t, x).prev_sample
    return x


def new_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


@cache
def uncached(name: str) -> Tensor:
    return sample(name, new_scheduler())


def run(name: str, chosen: Any) -> tuple[Tensor, Any]:
    scheduler = new_scheduler()
    with apply(model(name), chosen, scheduler=scheduler) as session:
        result = sample(name, scheduler)
    assert not session.stats.fallbacks
    return result, session


@pytest.mark.parametrize(("name", "units"), CASES)
def test_computing_everything_changes_nothing(name: str, units: Any) -> None:
    result, session = run(name, policy(units, Fixed(mask="C" * STEPS), Taylor(order=1), magnitude=Observed()))
    assert torch.equal(result, uncached(name))
    assert session.stats.nfc == pytest.approx(STEPS)
    assert [t.step for t in session.stats.trace] == list(range(STEPS))


@pytest.mark.parametrize(("name", "units"), CASES)
def test_forecasting(name: str, units: Any) -> None:
    """Every unit is computed and forecast as planned; what is forecast is not computed; the cache is as announced."""
    chosen = policy(units, Fixed(mask="CCCFFCFF"), Taylor(order=1), magnitude=Observed())
    scheduler = new_scheduler()
    with Work(name) as work, apply(model(name), chosen, scheduler=scheduler) as session:
        result, held = sample(name, scheduler), shapes(session)
    assert result.isfinite().all() and not torch.equal(result, uncached(name))
    assert not session.stats.fallbacks
    assert session.stats.nfc == pytest.approx(4)
    assert set(session.stats.computed.values()) == set(session.stats.forecast.values()) == {4}
    assert session.plan is not None
    assert set(session.stats.forecast) == {unit.name for unit in session.plan.units}
    assert set(work.counts.values()) <= {4, 8}  # some models call one MLP for both streams
    if name != "Cosmos3OmniTransformer":  # its streams [tokens, channels] have no samples to keep scales of
        assert cache_bytes(session.plan, held, 4) == session.stats.cache_bytes > 0


def shapes(session: Any) -> dict[str, tuple[int, ...]]:
    """Of the blocks' streams, as far as units tell."""
    units, held = session.plan.units, session._run.memory.branches["0"].histories
    found = {s: t.shape for u in units for s, t in zip(u.streams, held[u.name].inputs[0], strict=True)}
    if "tokens" in found and len(found) > 1:
        del found["tokens"]
    if set(found) == {"hidden_states"} and any(not u.streams[0].startswith("hidden") for u in units):
        tokens = next(
            t for u in units for s, t in zip(u.streams, held[u.name].inputs[0], strict=True) if s == "tokens"
        )
        found["encoder_hidden_states"] = tokens[:, found["hidden_states"][1] :].shape
    return found


@pytest.mark.parametrize(("name", "units"), CASES)
def test_standing_still(name: str, units: Any) -> None:
    """Where nothing changes, reusing is computing: the forecast takes exactly the place of what it replaces."""
    tiny, still = ZOO[name], Still()
    x = tiny.noise()
    outputs = []
    chosen = policy(units, Fixed(mask="CFCFFFFF"), Reuse())
    with apply(model(name), chosen, scheduler=still) as session, torch.no_grad():
        for _ in range(4):
            outputs.append(tiny.velocity(model(name), x, still.timesteps[0]))
            still.step()
    assert set(session.stats.forecast.values()) == {2}
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


class Still:
    """A scheduler that never moves on."""

    config: ClassVar[dict[str, Any]] = {}
    timesteps = torch.full((STEPS,), 500.0)
    sigmas = torch.full((STEPS,), 0.5)

    def set_timesteps(self) -> None:
        pass

    def step(self) -> None:
        pass


@pytest.mark.parametrize("name", CLASSES)
def test_the_relational_gate(name: str) -> None:
    gate = Relational(thresholds=(1e6,), warmup=3, tail=1)
    _, session = run(name, policy(Stack(), gate, Taylor(order=1), magnitude=Observed()))
    assert "".join(t.decision for t in session.stats.trace) == "CCCFFFFC"
    assert all(t.measured > 0 for t in session.stats.trace[3:-1])


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_remembered_is_not_written_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that changes its argument in place would spoil the history."""
    seen: list[tuple[Tensor, Tensor]] = []
    scheduler = new_scheduler()
    units = Modules() if name in MODULAR else Stack() if name in SKIPPING else Segments(starts=(0, 1, 2))
    remember = Memory.remember

    def watch(self: Memory, branch: Any, step: int, result: UnitResult, inputs: Any) -> None:
        seen.extend((tensor, tensor.clone()) for tensor in (*inputs, *result.feature))
        remember(self, branch, step, result, inputs)

    monkeypatch.setattr(Memory, "remember", watch)
    with apply(model(name), policy(units, magnitude=Observed()), scheduler=scheduler):
        sample(name, scheduler)
    assert seen and all(torch.equal(tensor, copy) for tensor, copy in seen)


@pytest.mark.parametrize(
    "name", [named(name) for name in SUPPORTED if name not in MODULAR and name not in SKIPPING]
)
def test_modules_that_are_not_described_are_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="not described"):
        resolve_units(model(name), Modules())


@pytest.mark.parametrize("name", MODULAR)
def test_modules_cover_what_is_heavy(name: str) -> None:
    """Outside of the spans a block holds nothing but norms, modulation and parameter-free parts."""
    covered = {
        id(m)
        for unit in network_units(resolve_units(model(name), Modules()))
        for part in unit.members
        for m in part.modules()
    }
    for _, block in block_lists(model(name)):
        left = {
            path
            for path, module in block.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and id(module) not in covered
        }
        assert all(norm_like(path) for path in left), left


def test_unknown_models_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"no adapter for Linear; .*learn.*register"):
        adapter_for(nn.Linear(2, 2))


class Work:
    """Counts how often the blocks' linear layers are really called, apart from norms and modulation."""

    def __init__(self, name: str):
        self.blocks = [block for _, block in block_lists(model(name))]
        self.counts: Counter[nn.Module] = Counter()
        self.handles: list[Any] = []

    def __enter__(self) -> "Work":
        for block in self.blocks:
            # first and last layers of a fused span are routed themselves, so their calls say nothing
            ends = {block.get_submodule(p) for p in ("proj_mlp", "proj_out") if hasattr(block, p)}
            for path, module in block.named_modules():
                if isinstance(module, nn.Linear) and not norm_like(path) and module not in ends:
                    self.handles.append(module.register_forward_pre_hook(self._count))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _count(self, layer: nn.Module, _: Any) -> None:
        self.counts[layer] += 1


def norm_like(path: str) -> bool:
    return "norm" in path or "mod" in path.lower()
