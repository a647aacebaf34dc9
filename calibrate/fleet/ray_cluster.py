"""Workers as actors of a Ray cluster. Ray is optional: only who asks for a cluster imports this file."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cachesmith.calibrate.fleet.processes import Desk
from cachesmith.calibrate.fleet.recipe import Recipe
from cachesmith.calibrate.fleet.remote import GoneError
from cachesmith.calibrate.fleet.wire import answered
from cachesmith.policies import CachesmithError, PolicyError

REACHED = 10.0
"""Seconds within which a cluster must be reached; Ray itself tries for minutes, and then ends this process."""

STARTED = 600.0
"""Seconds within which an actor must have a place: where a machine is gone, one that replaces another may find none."""


class Actor:
    """An actor on whatever machine Ray chooses, with a GPU of its own where the pipeline computes on one."""

    def __init__(self, recipe: Recipe):
        served = ray.remote(_Served).options(num_cpus=1, num_gpus=_gpus(recipe.device), max_restarts=0)
        self._actor: Any = served.remote(recipe)
        self._started = False

    def ask(self, message: bytes) -> bytes:
        """Send a message and wait for its answer. Raises `CachesmithError` where the cluster has no place for it."""
        try:
            if not self._started:
                ray.get(self._actor.__ray_ready__.remote(), timeout=STARTED)
                self._started = True
            reply: bytes = ray.get(self._actor.answer.remote(message))
        except ray.exceptions.GetTimeoutError:
            raise CachesmithError(
                f"the Ray cluster gave a worker no place within {STARTED:g} s; add a machine, or write fewer "
                "--workers; the same command goes on where it stopped"
            ) from None
        except ray.exceptions.RayError as error:
            raise GoneError(_reason(error)) from None
        return reply

    def close(self) -> None:
        """End the actor; what is written is written in one piece."""
        if ray.is_initialized():
            ray.kill(self._actor)


class _Served:
    """The other end of an `Actor`."""

    def __init__(self, recipe: Recipe):
        self._desk = Desk(recipe)

    def answer(self, message: bytes) -> bytes:
        """Do a packed call."""
        return answered(self._desk, message)


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Join the cluster at `address` unless one is joined already.

    address: `host:6379`, `auto` for that of RAY_ADDRESS, or `local`: one is started here. Raises `CachesmithError`
    where there is none.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=_reached(address), log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise CachesmithError(
            f"there is no Ray cluster at {address!r} ({_reason(error)}); start one with `ray start --head` on one "
            "machine and `ray start --address HOST:6379` on the others, or use --ray local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def check_room(device: str, actors: int) -> None:
    """Raise `PolicyError` where the cluster has too little left for so many actors: they would wait for ever."""
    free: dict[str, float] = ray.available_resources()
    kind = "GPU" if _gpus(device) else "CPU"
    if (room := int(free.get(kind, 0))) < actors:
        raise PolicyError(
            f"the Ray cluster has {room} {kind}s free for {actors} workers beside this process; "
            f"write --workers {room + 1}, or add machines"
        )


def _gpus(device: str) -> int:
    return int(device.startswith("cuda"))


def _reached(address: str) -> str:
    """Ray's own search for a cluster finds the file of one that has ended, and waits for it."""
    named = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if not named:
        raise ValueError("RAY_ADDRESS is not set")
    host, _, port = named.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), REACHED).close()
    return named


def _reason(error: Exception) -> str:
    """Ray writes pages: their first line, or the last where they end with what was raised over there."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "creation task" in lines[0] else 0].strip()
