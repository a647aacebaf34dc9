"""From the calls of one trace to chains: lists of blocks in which each block's streams are the next one's."""

from collections import Counter
from dataclasses import dataclass

from cachesmith.runtime.discovery.trace import BlockCall, CallTrace, Spec
from cachesmith.runtime.models.adapter import JOINED

RANK = ("same", "equal", "joined", "work")
"""From the strongest evidence to the weakest."""


@dataclass(eq=False)
class Run:
    """All calls of one list, in order. `streams`: the argument that each output of a block continues."""

    path: str
    calls: list[BlockCall]
    streams: tuple[str, ...]
    why: str = ""

    @property
    def weight(self) -> int:
        """Parameters times tokens: what the list costs, roughly."""
        return sum(_weight(call) for call in self.calls)

    @property
    def substitutes(self) -> tuple[str, ...]:
        """For each output, an argument that has its shape; empty where there is none for some output."""
        if self.streams:
            return self.streams
        first = self.calls[0]
        names = tuple(
            next((n for n in reversed(first.specs) if first.specs[n] == output), "") for output in first.made
        )
        return names if all(names) else ()

    @property
    def works(self) -> bool:
        """Whether the transformer does something between blocks."""
        return any(link.how == "work" for call in self.calls[1:] for link in call.links)


@dataclass(eq=False)
class Chain:
    """Runs that follow each other. `joined`: the streams were joined along the tokens on the way."""

    runs: list[Run]
    joined: bool = False

    @property
    def calls(self) -> list[BlockCall]:
        """All calls, in order."""
        return [call for run in self.runs for call in run.calls]

    @property
    def skips(self) -> bool:
        """Whether blocks read what earlier blocks made."""
        paths = {run.path for run in self.runs}
        return any(call.reads & paths for call in self.calls)

    @property
    def weight(self) -> int:
        """What the chain costs, roughly."""
        return sum(run.weight for run in self.runs)


def runs_of(trace: CallTrace) -> list[Run]:
    """Return the calls of every list, in the order in which the lists begin."""
    sizes = Counter(place.path for place in trace.places)
    found = []
    for path in dict.fromkeys(call.place.path for call in trace.calls):
        calls = [call for call in trace.calls if call.place.path == path]
        streams, why = _streams(path, calls)
        if path in trace.repeated:
            why = f"blocks of {path} are called several times in one call"
        elif len(calls) < sizes[path]:
            why = f"only {len(calls)} of the {sizes[path]} blocks in {path} are called"
        found.append(Run(path, calls, streams, why))
    return found


def chains_of(runs: list[Run]) -> list[Chain]:
    """Return the chains that may be cached, the costliest first: of linked lists, and of every list by itself."""
    good = [run for run in runs if not run.why]
    found = [_grown(run, good) for run in good]
    longest = {id(chain.runs[-1]): chain for chain in sorted(found, key=lambda c: c.weight)}
    alone = [Chain([run]) for run in good]
    order = sorted([*longest.values(), *alone], key=lambda c: (-c.weight, -len(c.runs)))
    seen: list[list[Run]] = []
    return [c for c in order if c.runs not in seen and not seen.append(c.runs)]  # type: ignore[func-returns-value]


def _grown(run: Run, runs: list[Run]) -> Chain:
    """Begin with a list, and go on to whichever its last outputs lead."""
    chain = Chain([run])
    while True:
        last = chain.runs[-1]
        following = next((r for r in runs if r not in chain.runs and _leads(last, r)), None)
        if following is None:
            return chain
        if len(following.streams) == 1 and len(last.streams) > 1:
            chain.joined = True
            following = Run(following.path, following.calls, JOINED)
        chain.runs.append(following)


def _leads(last: Run, following: Run) -> bool:
    """Whether streams go over from one list to another under the same names, or joined."""
    links = [link for link in following.calls[0].links if link.source == last.path]
    if any(link.how == "joined" and link.argument in following.streams for link in links):
        return len(following.streams) == 1
    carried = {link.argument for link in links if link.argument in following.streams}
    named = {last.streams[link.outputs[0]] for link in links if len(link.outputs) == 1}
    return bool(carried) and carried == named


def _streams(path: str, calls: list[BlockCall]) -> tuple[tuple[str, ...], str]:
    """Name every output of a block after the argument that it continues; or say why that cannot be."""
    made = calls[0].made
    if any(len(call.made) != len(made) for call in calls):
        return (), f"the blocks of {path} return different numbers of tensors"
    if len(made) == 1 and calls[0].sequence:
        return (), f"the blocks of {path} return a tuple of one"
    names = _linked(calls)
    for j, output in enumerate(made):
        if j not in names:
            names[j] = _guess(calls, output, set(names.values()))
        if not names[j]:
            return (), f"output {j} of the blocks in {path} continues none of their arguments"
    return tuple(names[j] for j in range(len(made))), ""


def _linked(calls: list[BlockCall]) -> dict[int, str]:
    """The arguments that outputs lead to, by the strongest evidence first."""
    votes: Counter[tuple[int, str, int]] = Counter()
    for call in calls[1:]:
        votes.update((RANK.index(link.how), link.argument, link.outputs[0]) for link in call.links)
    names: dict[int, str] = {}
    for _, name, j in sorted(votes, key=lambda vote: (vote[0], -votes[vote])):
        if j not in names and name not in names.values():
            names[j] = name
    return names


def _guess(calls: list[BlockCall], output: Spec | None, taken: set[str]) -> str:
    """For a list of one block, or an output that goes nowhere: an argument of its shape, or one as empty as it is."""
    first = calls[0]
    shared = calls[1].same if len(calls) > 1 else frozenset()
    if output is None:
        options = [n for n, v in first.arguments.items() if v is None]
    else:
        options = [n for n, s in first.specs.items() if s == output and n not in shared]
    return next((n for n in options if n not in taken), "")


def _weight(call: BlockCall) -> int:
    parameters = sum(p.numel() for p in call.place.module.parameters())
    first = next((s for s in call.made if s is not None), None)
    tokens = 1 if first is None or len(first.shape) < 2 else max(1, _elements(first) // first.shape[-1])
    return parameters * tokens


def _elements(spec: Spec) -> int:
    total = 1
    for extent in spec.shape:
        total *= extent
    return total
