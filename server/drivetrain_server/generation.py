"""All prompts of one HTTP request while the engine answers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from time import perf_counter

import msgspec
import orjson

from drivetrain.completion_text import TextDelta
from drivetrain.frontend import Frontend
from drivetrain.messages import GenerateRequest
from drivetrain_server.answers.answer import Answer, AnswerShape, PromptRun, usage_of
from drivetrain_server.event_stream import Course, EventStream, JsonPieces
from drivetrain_server.exchange import Exchange
from drivetrain_server.telemetry import Telemetry

MAX_CONCURRENT_ANSWERS = 256
"""Answers of one request that the engine works on at a time; the prompts left of a long list follow as these finish."""

Batch = list[tuple[int, TextDelta]]
"""What is new: (choice, delta) pairs."""

BeforeEnd = Callable[[], Awaitable[None]]


async def nothing_more() -> None:
    """Before the end of an answer that only its client gets."""


class Generation:
    """A request's prompts, its answers as they grow, and its usage.

    Args:
        requests: one a prompt, all with the same `params`.
        prompts: what the answer tells about each prompt; counts are kept here as tokens arrive.
        pieces: the text of single tokens, as JSON, of the `params`.
        operation: what is done, in the words of OpenTelemetry: `chat` or `text_completion`.
        empty: the client asked for no tokens at all (`max_tokens` of 0): the one that the engine makes is dropped.
        before_end: awaited once the answer is complete, before the client is told so.
    """

    def __init__(
        self,
        frontend: Frontend,
        requests: Sequence[GenerateRequest],
        prompts: Sequence[PromptRun],
        *,
        telemetry: Telemetry,
        pieces: JsonPieces,
        arrived: float,
        operation: str = "chat",
        empty: bool = False,
        before_end: BeforeEnd = nothing_more,
    ) -> None:
        self.prompts = prompts
        self.num_answers = requests[0].params.n
        self._frontend = frontend
        self._requests = requests
        self._telemetry = telemetry
        self._pieces = pieces
        self._empty = empty
        self._before_end = before_end
        self._turns = max(MAX_CONCURRENT_ANSWERS // self.num_answers, 1)
        self._started = False
        self._arrived = arrived
        self._operation = operation
        self._last_token = [arrived] * (len(requests) * self.num_answers)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Deltas of all choices as they come. Closing it aborts what is still running.

        Raises:
            DrivetrainError: as `Frontend.generate`; the other prompts are aborted.
        """
        streams = [
            self._frontend.generate(request, turns=prompt.turns)
            for request, prompt in zip(self._requests, self.prompts, strict=True)
        ]
        if len(streams) == 1:
            async with aclosing(streams[0]) as deltas:
                async for batch in deltas:
                    yield self._counted(0, batch)
            return
        async with aclosing(_merged(streams, self._turns)) as merged:
            async for prompt, batch in merged:
                yield self._counted(prompt, batch)

    async def stream(self, exchange: Exchange, shape: AnswerShape, *, usage_event: bool, usage_always: bool) -> None:
        """Send the answer as events."""
        events = _Events(self.prompts, self.num_answers, shape, usage_event=usage_event, usage_always=usage_always)
        if len(self._requests) == 1:
            course = Course(
                exchange=exchange,
                prompt=self.prompts[0],
                splice=events.splice,
                render=lambda deltas: events.render(self._counted(0, deltas)),
                pieces=self._pieces,
                telemetry=self._telemetry,
                last_token=self._last_token,
            )
            await EventStream(self._frontend, self._requests[0], course).run()
        else:
            async with aclosing(self.batches()) as batches:
                async for batch in batches:
                    if rendered := events.render(batch):
                        await exchange.event(rendered)
        self._complete()
        last = events.end()
        await self._before_end()
        await exchange.event(last, more=False)

    async def whole(self, exchange: Exchange, shape: AnswerShape, *, best: int) -> None:
        """Send the answer as one body, with the `best` likeliest answers to each prompt."""
        answers = [[Answer() for _ in range(self.num_answers)] for _ in self._requests]
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for choice, delta in batch:
                    answers[choice // self.num_answers][choice % self.num_answers].add(delta)
        self._complete()
        if best < self.num_answers:
            answers = [sorted(group, key=lambda answer: -answer.mean_logprob)[:best] for group in answers]
        body = shape.whole(self.prompts, answers)
        await self._before_end()
        await exchange.answer(body)

    def _complete(self) -> None:
        """Tell the times of an answer that is complete."""
        for place, run in enumerate(self.prompts):
            last = run.last_token_at = max(self._last_token[place * self.num_answers :][: self.num_answers])
            self._telemetry.generated(
                self._operation,
                duration_s=last - self._arrived,
                first_token_s=(run.first_token_at or last) - self._arrived,
                num_tokens=run.num_generated // self.num_answers,
            )

    def _counted(self, prompt: int, deltas: list[TextDelta]) -> Batch:
        run, now = self.prompts[prompt], perf_counter()
        if run.first_token_at is None and deltas:
            run.first_token_at, run.queued_s = now, deltas[0].queued_s
            self._telemetry.queued(run.queued_s)
        batch: Batch = []
        for each in deltas:
            delta = _emptied(each) if self._empty else each
            choice = prompt * self.num_answers + delta.index
            run.num_generated += len(delta.token_ids)
            run.num_cached_tokens = max(run.num_cached_tokens, delta.num_cached_tokens)
            if delta.prompt_logprobs is not None:
                run.logprobs = delta.prompt_logprobs
            self._telemetry.tokens(now - self._last_token[choice], len(delta.token_ids), first=not self._started)
            self._started = True
            self._last_token[choice] = now
            batch.append((choice, delta))
        return batch


class _Events:
    """Renders the batches of a stream with the shape of its route."""

    def __init__(
        self,
        prompts: Sequence[PromptRun],
        num_answers: int,
        shape: AnswerShape,
        *,
        usage_event: bool,
        usage_always: bool,
    ) -> None:
        self.usage_part = b',"usage":null' if usage_event else b""
        self._prompts = prompts
        self._num_answers = num_answers
        self._shape = shape
        self._usage_event = usage_event
        self._usage_always = usage_always
        self._opened: set[int] = set()
        self._held: Batch = []

    def render(self, batch: Batch) -> bytes:
        """The events that tell a batch; empty where there is nothing to say yet."""
        usage = b',"usage":' + orjson.dumps(usage_of(self._prompts)) if self._usage_always else self.usage_part
        events: list[bytes] = []
        batch, self._held = self._held + batch, []
        for choice, delta in batch:
            if choice not in self._opened:
                prompt = self._prompts[choice // self._num_answers]
                if prompt.awaits_logprobs and prompt.logprobs is None:
                    self._held.append((choice, delta))
                    continue
                self._opened.add(choice)
                events.append(self._shape.opening(choice, prompt, usage))
            events.append(self._shape.chunk(choice, delta, usage))
        return b"".join(events)

    def splice(self, choice: int) -> tuple[bytes, bytes] | None:
        """See `AnswerShape.splice`; None too while a choice is not begun, or each event tells the usage."""
        if self._usage_always or self._held or choice not in self._opened:
            return None
        return self._shape.splice(choice, self.usage_part)

    def end(self) -> bytes:
        """The last events."""
        assert not self._held, "the engine brought no log-probabilities of the prompt"
        return self._shape.ending(self._prompts, usage_event=self._usage_event)


def _emptied(delta: TextDelta) -> TextDelta:
    return msgspec.structs.replace(
        delta,
        text="",
        token_ids=[],
        logprobs=None if delta.logprobs is None else [],
        token_starts=None if delta.token_starts is None else [],
        finish_reason=None if delta.finish_reason is None else "length",
        stop_reason=None,
    )


async def _merged(
    streams: Sequence[AsyncGenerator[list[TextDelta], None]], max_open: int
) -> AsyncGenerator[tuple[int, list[TextDelta]], None]:
    """Items of all streams as they come, each with the index of its stream.

    `max_open` streams run at a time; the first error ends all.
    """
    items: asyncio.Queue[tuple[int, list[TextDelta] | Exception | None]] = asyncio.Queue(maxsize=len(streams))
    turns = asyncio.Semaphore(max_open)

    async def pump(index: int) -> None:
        try:
            async with turns, aclosing(streams[index]) as stream:
                async for item in stream:
                    await items.put((index, item))
            await items.put((index, None))
        except Exception as error:
            await items.put((index, error))

    pumps = [asyncio.create_task(pump(index)) for index in range(len(streams))]
    try:
        live = len(streams)
        while live:
            index, item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                live -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
