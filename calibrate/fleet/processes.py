"""Workers as processes of this machine."""

import multiprocessing
import signal
from multiprocessing.connection import Connection
from threading import RLock
from typing import Any

from tqdm import tqdm

from cachesmith.calibrate.fleet.recipe import Recipe
from cachesmith.calibrate.fleet.remote import GoneError
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.wire import Call, answered

SECONDS_TO_END = 5.0
"""Seconds that a process is given to end."""


class Process:
    """A process of its own, as fresh as Python starts one: CUDA does not survive a fork."""

    def __init__(self, recipe: Recipe):
        context = multiprocessing.get_context("spawn")
        self._end, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, recipe), daemon=True)
        self._process.start()
        far.close()

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    def ask(self, message: bytes) -> bytes:
        """Send a message and wait for its answer."""
        try:
            self._end.send_bytes(message)
            return self._end.recv_bytes()
        except (EOFError, OSError):
            self._process.join(SECONDS_TO_END)
            raise GoneError(f"exit code {self._process.exitcode}") from None

    def close(self) -> None:
        """End the process; what is written is written in one piece."""
        self._process.terminate()
        self._process.join(SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(SECONDS_TO_END)
        self._end.close()


def serve(end: Connection, recipe: Recipe) -> None:
    """Answer calls until the other end is closed. Ctrl-C is for whoever asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a bar's usual lock is a semaphore of all processes, and Python complains of it where one is ended
    tqdm.set_lock(RLock())
    desk = Desk(recipe)
    while True:
        try:
            message = end.recv_bytes()
        except EOFError:
            return
        end.send_bytes(answered(desk, message))


class Desk:
    """Does calls with a shard that is made for the first of them: what goes wrong then is its answer."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._shard: Shard | None = None

    def __call__(self, call: Call) -> Any:
        """Do it."""
        self._shard = self._shard or self._recipe.shard()
        return getattr(self._shard, call.name)(*call.arguments)
