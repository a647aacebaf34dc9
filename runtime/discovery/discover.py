"""`discover`: the adapter of a transformer that has no row, from one call of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.discovery.chain import Chain, Run, chains_of, runs_of
from cachesmith.runtime.discovery.prove import Replay, idle_runs, live_outputs, written
from cachesmith.runtime.discovery.trace import CallTrace
from cachesmith.runtime.hooks.arguments import argument_names
from cachesmith.runtime.models.adapter import Adapter, BlockList, IdleList, is_compiled
from cachesmith.runtime.models.adapters import remember

TIMESTEPS = ("timestep", "timesteps", "t")
_REMEDY = "write an Adapter for it and pass it to cachesmith.runtime.register"


@dataclass(frozen=True)
class Discovery:
    """What one call told. `result` is what it returned; `chain` holds the traced calls of the adapter's blocks."""

    adapter: Adapter
    result: Any
    chain: Chain


class DiscoveryError(PolicyError):
    """No chain of blocks could be proven. `result` is what the traced call returned; whether it `writes` to a cache."""

    def __init__(self, name: str, why: str, result: Any, writes: bool = False):
        super().__init__(f"no blocks of {name} can be cached: {why}. To cache it all the same, {_REMEDY}")
        self.result, self.writes = result, writes


def discover(
    transformer: nn.Module, call: Callable[[], Any], again: Callable[[], Any] | None = None
) -> Discovery:
    """Run `call`, which calls `transformer` once, and find the blocks that can be cached.

    `call` is made once with the blocks; it, or `again` where it cannot be repeated, a few times without them. Only
    references are held meanwhile, to streams at the borders of lists of blocks. Raises `DiscoveryError` with the reason
    where nothing can be proven to be right.
    """
    name = type(transformer).__name__
    if is_compiled(transformer):
        raise PolicyError(f"{name} is compiled as a whole; compile its blocks instead")
    with _same_randomness(transformer) as rewind:
        trace = CallTrace(transformer, call)
        runs = runs_of(trace)
        why = next((f"{w} is written to by {c.place.path}" for c in trace.calls if (w := _remembers(c))), "")
        if why:
            raise DiscoveryError(name, why, trace.result, writes=True)
        reasons = [run.why for run in runs if run.why]
        for chain in chains_of(runs):
            adapter, why = _prove(transformer, rewind(again or call), chain, runs, trace)
            if adapter is not None:
                return Discovery(adapter, trace.result, chain)
            reasons.append(why)
    raise DiscoveryError(name, reasons[0] if reasons else "it has no list of blocks", trace.result)


def learn(transformer: nn.Module, call: Callable[[], Any]) -> Adapter:
    """Have `transformer` cached from now on as one `call` of it told; raises what `discover` raises."""
    adapter = discover(transformer, call).adapter
    remember(transformer, adapter)
    return adapter


def _prove(
    transformer: nn.Module, call: Callable[[], Any], chain: Chain, runs: list[Run], trace: CallTrace
) -> tuple[Adapter | None, str]:
    paths = " and ".join(run.path for run in chain.runs)
    spoilt = written(chain)
    if spoilt:
        return None, f"{spoilt} is written to in place"
    replay = Replay(call, chain, trace.result)
    try:
        if not replay.same():
            return None, f"with {paths} replaced by what they returned, the call returns something else"
    except Exception as error:
        return None, f"with {paths} replaced, the call fails: {type(error).__name__}: {str(error)[:100]}"
    streams = chain.runs[-1].streams
    live = tuple(streams[j] for j in live_outputs(replay))
    if not live:
        return None, f"the output of {paths} is not read"
    why = _misfit(chain, live)
    if why:
        return None, why
    chosen = {run.path for run in chain.runs}
    idle = idle_runs(replay, [run for run in runs if run.path not in chosen], live)
    return _adapter(transformer, chain, live, idle), ""


def _adapter(
    transformer: nn.Module, chain: Chain, live: tuple[str, ...], idle: list[tuple[Run, int]]
) -> Adapter:
    names = argument_names(transformer)
    timestep = next((n for n in TIMESTEPS if n in names), None)
    timestep = timestep or next((n for n in names if "time" in n), TIMESTEPS[0])
    last = chain.runs[-1]
    return Adapter(
        lists=tuple(BlockList(run.path, run.streams) for run in chain.runs),
        live=live,
        timestep=timestep,
        idle=tuple(IdleList(run.path, run.substitutes, kept) for run, kept in idle if run.substitutes),
        skips=chain.skips,
        works=any(run.works for run in chain.runs),
        empty=tuple(
            n for j, n in enumerate(last.streams) if all(call.made[j] is None for call in last.calls)
        ),
    )


def _misfit(chain: Chain, live: tuple[str, ...]) -> str:
    """Why what the chain adds to its input cannot be told: a live stream has no input of its shape."""
    first, last = chain.calls[0], chain.calls[-1]
    made = dict(zip(chain.runs[-1].streams, last.made, strict=True))
    if chain.joined:
        (spec,) = made.values()
        lengths = [first.specs[n].shape[1] for n in chain.runs[0].streams]
        fits = spec is not None and len(spec.shape) == 3 and sum(lengths) == spec.shape[1]
        return "" if fits else f"the streams joined in {last.place.path} are not those of {first.place.path}"
    for name in live:
        if first.specs.get(name) != made[name]:
            return (
                f"`{name}` has another shape or dtype after {last.place.path} than before {first.place.path}"
            )
    return ""


def _remembers(call: Any) -> str:
    """What a block writes to beside its outputs. Streams are judged by themselves."""
    return f"`{call.writes}`" if call.writes and call.writes not in call.specs else ""


@contextmanager
def _same_randomness(transformer: nn.Module) -> Iterator[Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """Give every repetition the random numbers of the traced call, and leave the generators where that left them."""
    device = next((p.device for p in transformer.parameters()), torch.device("cpu"))
    host = torch.get_rng_state()
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind(call: Callable[[], Any]) -> Callable[[], Any]:
        def again() -> Any:
            with torch.random.fork_rng([device] if own is not None else []):
                torch.set_rng_state(host)
                if own is not None:
                    torch.cuda.set_rng_state(own, device)
                return call()

        return again

    yield rewind
