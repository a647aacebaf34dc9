"""Which samples are called together, and who has them."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cachesmith.sampling.requests import Request, batches


class Group(NamedTuple):
    """Samples that are called together: their numbers among all samples, and their requests."""

    numbers: tuple[int, ...]
    requests: tuple[Request, ...]


def request_groups(requests: Sequence[Request], batch: int) -> list[Group]:
    """Groups of at most `batch` samples, numbered through; a sample's number does not depend on `batch`."""
    groups, count = list[Group](), 0
    for places in batches(requests, batch):
        numbers = range(count, count + len(places))
        groups.append(Group(tuple(numbers), tuple(requests[place] for place in places)))
        count += len(places)
    return groups


def shared_out(groups: Sequence[Group], workers: int) -> list[dict[int, Group]]:
    """Each worker's part of each group, by the group's place; what would be empty is left out.

    Sample n goes to worker n % workers: each has its part of whatever groups are chosen, and few folds.
    """
    shares: list[dict[int, Group]] = [{} for _ in range(workers)]
    for place, group in enumerate(groups):
        for worker, share in enumerate(shares):
            own = [i for i, number in enumerate(group.numbers) if number % workers == worker]
            if own:
                numbers, requests = ([part[i] for i in own] for part in group)
                share[place] = Group(tuple(numbers), tuple(requests))  # type: ignore[arg-type]
    return shares


def cut(groups: Sequence[Group], size: int) -> list[tuple[int, ...]]:
    """Numbers of the samples that at most `size` at once come from one group."""
    return [group.numbers[i : i + size] for group in groups for i in range(0, len(group.numbers), size)]


def draws(units: Sequence[tuple[int, ...]], size: int, seed: int) -> Iterator[list[int]]:
    """Numbers of at most `size` samples again and again, no sample twice before all were drawn."""
    chooser = random.Random(seed)
    while True:
        order, drawn = [*units], list[int]()
        chooser.shuffle(order)
        for each in order:
            if drawn and len(drawn) + len(each) > size:
                yield drawn
                drawn = []
            drawn += each
        yield drawn


def at_least(groups: Sequence[Group], count: int) -> list[int]:
    """Places of the first groups with at least `count` samples."""
    chosen, samples = list[int](), 0
    for place, group in enumerate(groups):
        if samples < count:
            chosen.append(place)
            samples += len(group.numbers)
    return chosen
