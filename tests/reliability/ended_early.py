"""Jobs that end early, each in a process of its own, forked from this one, which runs none itself.

A job is called with `tell` and its order. What it tells, a list of words at a time, is all that is known of it.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENDINGS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk")
ROOM = 1000
"""Bytes a file may have on the full disk."""

ROOT = Path(__file__).parents[2]


def begin(job: Callable[..., None], *order: Any, full_after: float | None = None) -> tuple[int, int]:
    """Fork a job, whose disk is full after so many seconds; return its process and what it tells."""
    reading, told = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # what runs in a shell's background ignores it
        if full_after is not None:
            _fill_disk(full_after)
        job(lambda *words: os.write(told, json.dumps(words).encode() + b"\n"), *order)
        os._exit(0)
    os.close(told)
    return process, reading


def _fill_disk(after: float) -> None:
    limit = (ROOM, resource.RLIM_INFINITY)
    timer = threading.Timer(after, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    timer.daemon = True
    timer.start()


def end(process: int, reading: int) -> list[list[Any]]:
    """Wait for a job; return what it told."""
    with os.fdopen(reading, "rb") as file:
        lines = file.read().splitlines()
    os.waitpid(process, 0)
    return [json.loads(line) for line in lines if line.endswith(b"]")]


def ended_early(job: Callable[..., None], ending: str, moment: float, *order: Any) -> list[list[Any]]:
    """Start a job and end it after `moment` seconds; return what it told."""
    process, reading = begin(job, *order, full_after=moment if ending == "full disk" else None)
    if ending != "full disk":
        time.sleep(moment)
        os.kill(process, getattr(signal, ending))
    return end(process, reading)


def printed(module: str, *arguments: Any) -> Any:
    """Run a module as a program; return its last line of JSON."""
    path = os.pathsep.join((str(ROOT), *sys.path))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
