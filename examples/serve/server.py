"""`python server.py --model MODEL --policy X.policy.safetensors`: pictures over HTTP, see README.md."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from time import monotonic

import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from metrics import Metrics
from painter import Painter, Picture
from pydantic import BaseModel, Field
from service import FullError, Job, Service, TooLateError

from cachesmith import replicate
from cachesmith.policies import load

POLL = 0.5
"""Seconds between two looks whether a client is still there."""


class Wanted(BaseModel, extra="forbid"):
    """The body of a request. Without a profile the best one; `deadline` in seconds from now."""

    prompt: str = Field(min_length=1, max_length=4000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    profile: str | None = None
    deadline: float | None = Field(default=None, gt=0, le=3600)


router = APIRouter()


@router.post("/generate", response_class=Response)
async def generate(wanted: Wanted, request: Request) -> Response:
    """Draw one picture; the headers say how."""
    service: Service = request.app.state.service
    job = _job(wanted, service.profiles)
    try:
        picture = await _awaited(request, service.submit(job))
    except FullError as error:
        request.app.state.metrics.failed(job.profile, "refused")
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
    except TooLateError as error:
        raise HTTPException(504, str(error)) from None
    headers = {
        "X-Profile": picture.profile,
        "X-NFC": f"{picture.nfc:g}",
        "X-Seconds": f"{picture.seconds:.4f}",
        "X-Fallbacks": str(sum(picture.fallbacks.values())),
    }
    return Response(picture.png, media_type="image/png", headers=headers)


@router.get("/profiles")
def profiles(request: Request) -> list[str]:
    """Profiles, best quality first."""
    names: list[str] = request.app.state.service.profiles
    return names


@router.get("/healthz")
def healthy() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "alive"}


@router.get("/readyz")
def ready(request: Request) -> dict[str, str]:
    """Whether it may be sent requests."""
    if not request.app.state.service.ready:
        raise HTTPException(503, "not ready")
    return {"status": "ready"}


@router.get("/metrics")
def numbers(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


def create_app(service: Service, metrics: Metrics, warm_up: str) -> FastAPI:
    """Return the application. It warms up with the prompt `warm_up`, and finishes what waits before it stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start, warm_up)
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(title="cachesmith", lifespan=lifespan)
    app.state.service, app.state.metrics = service, metrics
    app.include_router(router)
    return app


async def _awaited(request: Request, answer: "Future[Picture]") -> Picture:
    """Wait for the answer, or give the job up when the client has gone."""
    waiting = asyncio.wrap_future(answer)
    while not (await asyncio.wait({waiting}, timeout=POLL))[0]:
        if await request.is_disconnected() and answer.cancel():
            raise HTTPException(499, "the client went away")
    return waiting.result()


def _job(wanted: Wanted, profiles: list[str]) -> Job:
    # the best cached profile: uncached is there to compare with
    profile = wanted.profile or profiles[min(1, len(profiles) - 1)]
    if profile not in profiles:
        raise HTTPException(422, f"there is no profile {profile!r}; choose from {', '.join(profiles)}")
    deadline = None if wanted.deadline is None else monotonic() + wanted.deadline
    return Job(wanted.prompt, wanted.seed, profile, deadline)


def painters(options: argparse.Namespace) -> list[Painter]:
    """Load the model once, and return as many painters as asked for."""
    policy = load(options.policy)
    sampler = policy.document.sampler
    steps = options.steps or (50 if sampler is None else sampler.steps)
    dtype = getattr(torch, options.dtype)
    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    pipes = [pipe, *(replicate(pipe) for _ in range(options.workers - 1))]
    return [Painter(p, policy, steps, options.arguments) for p in pipes]


def main() -> None:
    """Read the command line and serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a diffusers pipeline folder or hub id")
    parser.add_argument("--policy", required=True, help="X.policy.safetensors")
    parser.add_argument("--arguments", type=json.loads, default={}, help='of every call, {"height": 1024}')
    parser.add_argument("--steps", type=int, help="default: the policy's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=64, help="requests that may wait")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--warm-up", default="a picture", help="prompt of the first pictures")
    parser.add_argument("--drain", type=int, default=300, help="seconds to finish open requests when stopped")
    options = parser.parse_args()
    metrics = Metrics()
    app = create_app(Service(painters(options), options.capacity, metrics), metrics, options.warm_up)
    # uvicorn stops listening, waits for open requests, and then ends the lifespan
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=options.drain)


if __name__ == "__main__":
    main()
