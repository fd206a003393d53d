"""Driving a server with many requests at once and timing each token's arrival."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from drivetrain.errors import DrivetrainError
from drivetrain_server.http_client import Endpoint, Json, parse_json, request

FIRST_TOKEN_ID = 100
"""Ids below it are often special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent.

    Attributes:
        concurrency: requests under way at the same time; None is no bound. With `rate`, an arrival that finds them all
            under way waits, and the wait counts as part of its time to first token.
        rate: arrivals a second, at exponential distances; None sends as fast as `concurrency` allows.
        input_tokens, output_tokens: exact lengths of every prompt and answer.
        shared_prefix: tokens at the start that all prompts have in common.
        vocab_size: prompts are random ids below it.
    """

    model: str
    num_requests: int = 32
    concurrency: int | None = 8
    rate: float | None = None
    input_tokens: int = 128
    output_tokens: int = 64
    shared_prefix: int = 0
    vocab_size: int = 10_000
    seed: int = 0
    temperature: float = 0.0

    def prompts(self) -> list[list[int]]:
        """The prompts: the same for the same seed."""
        chooser = random.Random(self.seed)
        shared = [chooser.randrange(FIRST_TOKEN_ID, self.vocab_size) for _ in range(self.shared_prefix)]
        own = self.input_tokens - self.shared_prefix
        return [
            shared + [chooser.randrange(FIRST_TOKEN_ID, self.vocab_size) for _ in range(own)]
            for _ in range(self.num_requests)
        ]


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


async def drive(endpoint: Endpoint, load: Load, on_done: Callable[[Sample], None] = lambda _: None) -> list[Sample]:
    """Send every request of `load` and wait for all answers. A failed request is a sample with its `problem`."""
    slots = asyncio.Semaphore(load.concurrency or load.num_requests)

    async def one(prompt: list[int], arrival: float | None) -> Sample:
        async with slots:
            sample = await _timed(endpoint, load, prompt, arrival)
        on_done(sample)
        return sample

    tasks: list[asyncio.Task[Sample]] = []
    async with asyncio.TaskGroup() as group:
        for prompt, arrival in zip(load.prompts(), _arrivals(load), strict=True):
            if arrival is not None:
                await asyncio.sleep(arrival - time.perf_counter())
            tasks.append(group.create_task(one(prompt, arrival)))
    return [task.result() for task in tasks]


def _arrivals(load: Load) -> list[float | None]:
    """When each request arrives, fixed beforehand: a late wake-up delays no later one. None is as soon as it can."""
    if load.rate is None:
        return [None] * load.num_requests
    pauses = random.Random(load.seed + 1)
    start = time.perf_counter()
    distances = [0.0, *(pauses.expovariate(load.rate) for _ in range(load.num_requests - 1))]
    return [start + passed for passed in accumulate(distances)]


async def _timed(endpoint: Endpoint, load: Load, prompt: list[int], arrival: float | None) -> Sample:
    body: dict[str, Json] = {
        "model": load.model,
        "prompt": list(prompt),
        "max_tokens": load.output_tokens,
        "temperature": load.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(sent_s=time.perf_counter() if arrival is None else arrival)
    try:
        async with request(endpoint, "POST", "/v1/completions", body) as response:
            async for event in response.events():
                now = time.perf_counter()
                if event == "[DONE]":
                    break
                _take(sample, parse_json(event), now)
    except (DrivetrainError, OSError) as error:
        sample.problem = str(error)
    sample.done_s = time.perf_counter()
    if sample.problem is None:
        sample.problem = _miscount(sample, load)
    return sample


def _take(sample: Sample, event: Json, now: float) -> None:
    match event:
        case {"error": problem}:
            sample.problem = f"the stream ended with an error: {problem}"
            return
        case {"choices": [{"text": str(text), **choice}, *_]}:
            if text or choice.get("finish_reason") is None:
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


def _miscount(sample: Sample, load: Load) -> str | None:
    expected: Mapping[str, tuple[int, int]] = {
        "prompt tokens": (sample.input_tokens, load.input_tokens),
        "answer tokens": (sample.output_tokens, load.output_tokens),
    }
    for what, (got, wanted) in expected.items():
        if got != wanted:
            return f"the server counted {got} {what}, expected {wanted}; the figures would not be comparable"
    return None if sample.arrivals else "the stream had no event with tokens"
