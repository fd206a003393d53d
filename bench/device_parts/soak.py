"""Mixed load for minutes, with clients that go away at any moment: every page comes back and memory stays flat."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from device_parts.serving import MODEL, Server
from device_parts.settings import Record, Settings
from drivetrain.errors import DrivetrainError
from drivetrain_server.http_client import Endpoint, parse_json, request

SAMPLE_S = 5.0
IDLE_LIMIT_S = 30.0
SETTLING = 0.4
"""Share of the time after which memory has to be flat: buffers, caches of kernels and the prefix index fill before."""
LEAST_JUDGED_S = 60.0
"""A shorter soak proves nothing about memory: its drift is told and not judged."""
RESIDENT_SLACK_BYTES = 64 << 20
DEVICE_SLACK_MIB = 64
ABORTED = 0.25


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the clients saw."""

    finished: int = 0
    aborted: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list[str])


def run(settings: Settings, record: Record) -> None:
    """Load, then quiet, then the books."""
    limit = 24 if settings.tiny else 2000
    with Server(settings) as server:
        server.wait_ready()
        samples, tally = asyncio.run(_soak(settings, server, limit))
        pages = _wait_idle(server)
    settled = samples[int(SETTLING * len(samples))]
    last = samples[-1]
    drift = {name: last[name] - settled[name] for name in ("server", "engine", "device_mib")}
    row = {"seconds": settings.soak_s, "finished": tally.finished, "aborted": tally.aborted, "events": tally.events}
    row |= {"pages": pages, "drift": drift}
    print("SOAK", json.dumps(row), flush=True)
    record.put(**row, model=settings.http_model, samples=samples, problems=tally.problems[:20])
    if pages.get("used") != 0 or pages["free"] + pages["cached"] != pages["capacity"]:
        record.fail(f"pages did not come back: {pages}")
    judged = settings.soak_s >= LEAST_JUDGED_S
    for process in ("server", "engine"):
        if judged and drift[process] > RESIDENT_SLACK_BYTES:
            record.fail(f"the {process} process grew by {drift[process] / 2**20:.0f} MiB after settling")
    if judged and drift["device_mib"] > DEVICE_SLACK_MIB:
        record.fail(f"device memory grew by {drift['device_mib']} MiB after settling")
    if tally.problems or not tally.finished or not tally.aborted:
        record.fail(f"{len(tally.problems)} requests failed of {tally.finished + tally.aborted}: {tally.problems[:3]}")


async def _soak(settings: Settings, server: Server, limit: int) -> tuple[list[dict[str, Any]], Tally]:
    until = time.monotonic() + settings.soak_s
    tally = Tally()
    samples: list[dict[str, Any]] = []
    clients = 12 if settings.tiny else 96
    async with asyncio.TaskGroup() as group:
        for client in range(clients):
            group.create_task(_client(Endpoint(url=server.url), random.Random(client), until, limit, tally))
        while time.monotonic() < until:
            await asyncio.sleep(min(SAMPLE_S, settings.soak_s / 8))
            samples.append(await asyncio.to_thread(_sample, server))
    return samples, tally


async def _client(endpoint: Endpoint, rng: random.Random, until: float, limit: int, tally: Tally) -> None:
    """One client: request after request, each of another kind, some left in the middle."""
    longest_s = 0.05 if limit < 100 else 2.0
    shared = [random.Random(0).randrange(1000, 4000) for _ in range(limit // 4)]
    while time.monotonic() < until:
        own = [rng.randrange(1000, 4000) for _ in range(rng.randint(1, limit))]
        prompt = (shared if rng.random() < 0.3 else []) + own
        body: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": rng.randint(1, limit // 4)}
        body |= {"ignore_eos": True, "stream": True} | rng.choice(KINDS)
        leaves_after = rng.uniform(0.0, longest_s) if rng.random() < ABORTED else None
        try:
            async with asyncio.timeout(leaves_after):
                events = await _stream(endpoint, body)
            tally.events += events
            tally.finished += 1
        except TimeoutError:
            tally.aborted += 1
        except (DrivetrainError, OSError) as error:
            tally.problems.append(str(error)[:300])
            await asyncio.sleep(0.5)


KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "seed": 1, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 40, "presence_penalty": 0.5},
    {"temperature": 0, "repetition_penalty": 1.2, "logprobs": 2},
    {"temperature": 0.7, "n": 2},
)


async def _stream(endpoint: Endpoint, body: dict[str, Any]) -> int:
    events = 0
    async with request(endpoint, "POST", "/v1/completions", body) as response:
        async for event in response.events():
            if event == "[DONE]":
                break
            match parse_json(event):
                case {"error": problem}:
                    raise OSError(f"the stream ended with an error: {problem}")
                case _:
                    events += 1
    return events


def _sample(server: Server) -> dict[str, Any]:
    return server.resident_bytes() | {"device_mib": _device_mib(), "pages": server.pages()}


def _device_mib() -> int:
    """Device memory in use by everyone, or 0 where there is no NVIDIA device."""
    try:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return 0
    return sum(int(line) for line in answer.stdout.split())


def _wait_idle(server: Server) -> dict[str, float]:
    """Pages once none is in use, or as they are after a while."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while True:
        pages = server.pages()
        if pages.get("used") == 0 or time.monotonic() > deadline:
            return pages
        time.sleep(0.1)
