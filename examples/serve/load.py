"""`python load.py http://127.0.0.1:8000 --clients 4 --requests 32`: load for the server, and what it made of it."""

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer: status, PNG bytes (of errors: the sentence), headers in lower case, seconds."""

    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float


def ask(url: str, timeout: float = 300, **wanted: Any) -> Reply:
    """Ask for one picture."""
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    began = perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            status, body, headers = reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        status, body, headers = error.code, error.read(), error.headers
    named = {name.lower(): value for name, value in headers.items()}
    return Reply(status, body, named, perf_counter() - began)


def load(url: str, wanted: Sequence[dict[str, Any]], clients: int) -> tuple[list[Reply], float]:
    """Ask for all pictures with so many clients at once; return the replies in order, and the seconds it took."""
    began = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(lambda body: ask(url, **body), wanted))
    return replies, perf_counter() - began


def main() -> None:
    """Print pictures a second and the median wait of every profile in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", default="a picture")
    options = parser.parse_args()
    with urllib.request.urlopen(f"{options.url}/profiles", timeout=30) as reply:
        profiles = json.load(reply)
    for profile in profiles:
        wanted = [{"prompt": options.prompt, "seed": s, "profile": profile} for s in range(options.requests)]
        replies, seconds = load(options.url, wanted, options.clients)
        good = sorted(r.seconds for r in replies if r.status == 200)
        median = good[len(good) // 2] if good else float("nan")
        speed, refused = len(good) / seconds, len(replies) - len(good)
        print(f"{profile:>12}: {speed:.2f} pictures/s, median {median:.2f} s, {refused} refused")


if __name__ == "__main__":
    main()
