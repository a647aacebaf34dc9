"""The service over HTTP, in one process, with a painter that draws nothing."""

import threading
from collections.abc import Iterator
from time import sleep
from typing import Any

import pytest
from tests.serve.example import module
from tests.serve.test_service import Stub

pytest.importorskip("fastapi")


@pytest.fixture
def server() -> Iterator[tuple[str, Stub]]:
    """A real server on a free loopback port."""
    import uvicorn

    painter, metrics = Stub(), module("metrics").Metrics()
    service = module("service").Service([painter], 1, metrics)
    config = uvicorn.Config(module("server").create_app(service, metrics, "warm"), port=0, log_level="error")
    process: Any = uvicorn.Server(config)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    for _ in range(500):
        if process.started:
            break
        sleep(0.01)
    port = process.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", painter
    painter.gate.set()
    process.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def ask(url: str, **wanted: Any) -> Any:
    return module("load").ask(url, 10, **wanted)


def get(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())


def test_a_picture_and_how_it_was_drawn(server: tuple[str, Stub]) -> None:
    reply = ask(server[0], prompt="a boot", seed=3, profile="fast")
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, b"png", "image/png")
    assert reply.headers["x-profile"] == "fast" and reply.headers["x-nfc"] == "7"
    assert server[1].drawn[-1] == ("a boot", 3, "fast")
    assert ask(server[0], prompt="a boot").headers["x-profile"] == "quality"


@pytest.mark.parametrize(
    "wanted", [{}, {"prompt": ""}, {"prompt": "p", "profile": "none"}, {"prompt": "p", "deadline": -1},
               {"prompt": "p", "seed": -1}, {"prompt": "p", "steps": 3}]
)  # fmt: skip
def test_what_is_wrong_is_refused(server: tuple[str, Stub], wanted: dict[str, Any]) -> None:
    drawn = len(server[1].drawn)
    assert ask(server[0], **wanted).status == 422 and len(server[1].drawn) == drawn


def test_health_profiles_and_metrics(server: tuple[str, Stub]) -> None:
    ask(server[0], prompt="odd")
    assert get(f"{server[0]}/healthz") == '{"status":"alive"}' and "ready" in get(f"{server[0]}/readyz")
    assert get(f"{server[0]}/profiles") == '["uncached","quality","fast"]'
    numbers = get(f"{server[0]}/metrics")
    assert 'cachesmith_requests_total{outcome="ok",profile="quality"} 1.0' in numbers
    assert (
        'cachesmith_fallbacks_total{reason="not finite"} 2.0' in numbers and "cachesmith_queue 0.0" in numbers
    )


def test_a_full_queue_is_503_and_a_passed_deadline_504(server: tuple[str, Stub]) -> None:
    url, painter = server
    painter.gate.clear()
    replies: list[Any] = []
    wanted = [{"prompt": "p", "seed": 1}, {"prompt": "p", "seed": 2, "deadline": 0.2}]
    threads = [threading.Thread(target=lambda w=w: replies.append(ask(url, **w))) for w in wanted]
    threads[0].start()
    sleep(0.3)  # the worker holds the first
    threads[1].start()
    sleep(0.3)
    refused = ask(url, prompt="p")
    painter.gate.set()
    for thread in threads:
        thread.join(10)
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert sorted(reply.status for reply in replies) == [200, 504]
    assert 'outcome="refused"' in get(f"{url}/metrics")
