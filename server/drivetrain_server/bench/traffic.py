"""Driving a server with many requests at once and timing each token's arrival."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from drivetrain.errors import DrivetrainError
from drivetrain_server.bench.jobs import Job
from drivetrain_server.http_client import Endpoint, Json, parse_json, request


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent.

    Attributes:
        concurrency: requests under way at the same time; None is no bound. With `rate`, an arrival that finds them all
            under way waits, and the wait counts as part of its time to first token.
        rate: arrivals a second; None sends as fast as `concurrency` allows.
        burstiness: 1 is a Poisson process; below, arrivals come in bursts; above, they come evenly.
        seed: of the arrivals.
    """

    model: str
    concurrency: int | None = 8
    rate: float | None = None
    burstiness: float = 1.0
    seed: int = 0
    temperature: float = 0.0


@dataclass(slots=True, kw_only=True)
class Sample:
    """One request as the client saw it. Times are seconds on a monotonic clock.

    Attributes:
        sent_s: when it was sent, or with a rate when it was due.
        arrivals: when each event with new tokens came.
        input_tokens, output_tokens, cached_tokens: as the server's usage reports them; cached are prompt tokens that
            it did not compute.
        problem: why it does not count; None is success.
    """

    sent_s: float
    arrivals: list[float] = field(default_factory=list[float])
    done_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    problem: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.arrivals[0] - self.sent_s

    @property
    def itl_s(self) -> list[float]:
        """Gaps between events that brought tokens."""
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None with fewer than two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)


async def drive(
    endpoint: Endpoint, load: Load, jobs: Sequence[Job], on_done: Callable[[Sample], None] = lambda _: None
) -> list[Sample]:
    """Send every job and wait for all answers. A failed request is a sample with its `problem`."""
    slots = asyncio.Semaphore(load.concurrency or len(jobs))

    async def one(job: Job, arrival: float | None) -> Sample:
        async with slots:
            sample = await _timed(endpoint, load, job, arrival)
        on_done(sample)
        return sample

    tasks: list[asyncio.Task[Sample]] = []
    async with asyncio.TaskGroup() as group:
        for job, arrival in zip(jobs, _arrivals(load, len(jobs)), strict=True):
            if arrival is not None:
                await asyncio.sleep(arrival - time.perf_counter())
            tasks.append(group.create_task(one(job, arrival)))
    return [task.result() for task in tasks]


def _arrivals(load: Load, count: int) -> list[float | None]:
    """When each request arrives, fixed beforehand: a late wake-up delays no later one. None is as soon as it can."""
    if load.rate is None:
        return [None] * count
    pauses = random.Random(f"{load.seed}/arrivals")
    start = time.perf_counter()
    mean_s = 1 / load.rate
    # A gamma distribution of the same mean; with a shape of 1 it is the exponential one.
    distances = [0.0, *(pauses.gammavariate(load.burstiness, mean_s / load.burstiness) for _ in range(count - 1))]
    return [start + passed for passed in accumulate(distances)]


async def _timed(endpoint: Endpoint, load: Load, job: Job, arrival: float | None) -> Sample:
    route = "/v1/completions" if job.messages is None else "/v1/chat/completions"
    body: dict[str, Json] = {
        "model": load.model,
        **job.body(),
        "temperature": load.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(sent_s=time.perf_counter() if arrival is None else arrival)
    try:
        async with request(endpoint, "POST", route, body) as response:
            async for event in response.events():
                now = time.perf_counter()
                if event == "[DONE]":
                    break
                _take(sample, parse_json(event), now)
    except (DrivetrainError, OSError) as error:
        sample.problem = str(error)
    sample.done_s = time.perf_counter()
    if sample.problem is None:
        sample.problem = _miscount(sample, job)
    return sample


def _take(sample: Sample, event: Json, now: float) -> None:
    match event:
        case {"error": {"message": str(problem)}} | {"error": problem}:
            sample.problem = f"the stream ended with an error: {problem}"
            return
        case {"choices": [{"text": str(text), **choice}, *_]}:
            if text or choice.get("finish_reason") is None:
                sample.arrivals.append(now)
        case {"choices": [{"delta": {**delta}, **choice}, *_]}:
            # The chunk that only opens the message brings no token.
            opens = "role" in delta and not delta.get("content")
            if delta.get("content") or (choice.get("finish_reason") is None and not opens):
                sample.arrivals.append(now)
        case _:
            pass
    match event:
        case {"usage": {"prompt_tokens": int(prompt_tokens), "completion_tokens": int(completion_tokens), **usage}}:
            sample.input_tokens, sample.output_tokens = prompt_tokens, completion_tokens
            match usage.get("prompt_tokens_details"):
                case {"cached_tokens": int(cached_tokens)}:
                    sample.cached_tokens = cached_tokens
                case _:
                    pass
        case _:
            pass


def _miscount(sample: Sample, job: Job) -> str | None:
    if not sample.output_tokens:
        return "the stream brought no usage; without the server's count of tokens the figures would not be comparable"
    for what, got, wanted in (
        ("prompt tokens", sample.input_tokens, job.input_tokens),
        ("answer tokens", sample.output_tokens, job.output_tokens),
    ):
        if wanted is not None and got != wanted:
            return f"the server counted {got} {what}, expected {wanted}; the figures would not be comparable"
    return None if sample.arrivals else "the stream had no event with tokens"
