"""One connection to an engine process: requests go out, and what comes back goes straight to whom it is for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from drivetrain.client import Sink, TokenLine
from drivetrain.errors import DrivetrainError, EngineDead
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Phase, Update
from drivetrain.process.frames import (
    Abort,
    AskStats,
    Died,
    FromEngine,
    Progress,
    Ready,
    Refused,
    ResetPrefixCache,
    Sleep,
    Slept,
    Stats,
    Submit,
    ToEngine,
    Updates,
    frame,
    raised,
)
from drivetrain.process.receiver import FrameReceiver

_CONNECT_PERIOD_S = 0.02
_SLICE = 128
"""Tokens that are handed on before the event loop may turn to new connections and first tokens."""
_MAX_RESUBMISSIONS = 1
"""A request that ends engines is not handed to one after the other."""


@dataclass(slots=True, eq=False)
class _Stream:
    """One request and where its answer goes. `line` is the number of its first completion."""

    request: GenerateRequest
    sink: Sink
    line: int
    live: set[int]
    started: bool = False
    submissions: int = 1


class EngineLink:
    """The part of an `EngineClient` that speaks with an engine which listens on a Unix socket.

    Each completion has a number, its line. A step that brings a completion one token and nothing else is told as a
    pair of line and token, which costs a dictionary look-up and one call; everything else comes as `Update`s.
    """

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._failure: str | None = None
        self._last_error: str | None = None
        self._phases: dict[str, Phase] = {}
        self._streams: dict[str, _Stream] = {}
        self._lines: dict[int, TokenLine] = {}
        self._line_owners: dict[int, _Stream] = {}
        self._next_line = 0
        self._left: Iterator[tuple[int, int]] = iter(())
        self._left_came = 0.0
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._sleep_waiters: deque[asyncio.Future[Slept]] = deque()
        self._encoder = msgspec.msgpack.Encoder()
        self._receiver: FrameReceiver | None = None
        self._ready = asyncio.Event()

    @property
    def info(self) -> EngineInfo | None:
        """None until the engine is ready, and while it is started again."""
        return self._info

    @property
    def failure(self) -> str | None:
        """Why the engine ended for good; None while it lives or is started again."""
        return self._failure

    @property
    def phases(self) -> list[Phase]:
        """Start-up phases so far, in order."""
        return list(self._phases.values())

    def attach(self, request: GenerateRequest, sink: Sink) -> None:
        """Submit a request whose answer goes to `sink`; see `EngineClient.attach`."""
        if self._info is None:
            raise EngineDead(self._failure or self._last_error or "the engine is not ready yet")
        if request.request_id in self._streams:
            raise DrivetrainError(f"request_id {request.request_id!r} is already running")
        count = request.params.n
        stream = _Stream(request, sink, self._next_line, set(range(count)))
        self._next_line += count
        self._streams[request.request_id] = stream
        for index in range(count):
            self._lines[stream.line + index] = sink.line(index)
            self._line_owners[stream.line + index] = stream
        self._write(Submit(request, stream.line))

    def detach(self, request_id: str) -> None:
        """Forget a request, and abort what of it has not ended."""
        stream = self._streams.pop(request_id, None)
        if stream is None:
            return
        for line in range(stream.line, stream.line + stream.request.params.n):
            del self._lines[line], self._line_owners[line]
        if stream.live:
            self._write(Abort(request_id))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[list[Update], None]:
        """Stream the updates of a request; see `EngineClient.generate`."""
        queue = UpdateQueue(request)
        self.attach(request, queue)
        try:
            async for updates in queue.batches():
                yield updates
        finally:
            self.detach(request.request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a running request or one of its completions; see `EngineClient.abort`."""
        if request_id in self._streams:
            self._write(Abort(request_id, index))

    async def stats(self) -> EngineStats:
        """Gauges and counters of this moment; all zero while no engine runs."""
        if self._info is None:
            return EngineStats()
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._write(AskStats())
        return await waiter

    async def reset_prefix_cache(self) -> None:
        """Forget every cached page that no request uses."""
        self._write(ResetPrefixCache())
        await self.stats()

    async def sleep(self) -> None:
        """Give the memory of the KV pages back; see `EngineClient.sleep`."""
        await self._ask_to_sleep(Sleep())

    async def wake(self) -> None:
        """Take the memory of the KV pages again; see `EngineClient.wake`."""
        await self._ask_to_sleep(Sleep(wake=True))

    async def _ask_to_sleep(self, message: Sleep) -> None:
        if self._info is None:
            raise EngineDead(self._failure or self._last_error or "the engine is not ready yet")
        waiter: asyncio.Future[Slept] = asyncio.get_running_loop().create_future()
        self._sleep_waiters.append(waiter)
        self._write(message)
        slept = await waiter
        if slept.kind:
            raise raised(Refused("", slept.kind, slept.message))

    def _write(self, message: ToEngine) -> None:
        if self._receiver is not None:
            self._receiver.write(frame(self._encoder, message))

    async def _converse(self, path: str, *, goes_on: Callable[[], bool]) -> Died | None:
        """Connect as soon as somebody listens on `path`, and take messages in until the connection ends.

        Args:
            goes_on: whether it is still worth trying to connect.

        Returns:
            The engine's last words, where it had some.
        """
        loop = asyncio.get_running_loop()
        while goes_on():
            try:
                _, receiver = await loop.create_unix_connection(lambda: FrameReceiver(self._take), path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_CONNECT_PERIOD_S)
        else:
            return None
        self._receiver = receiver
        try:
            await receiver.ended
        finally:
            receiver.close()
        return receiver.last_words

    def _disconnected(self, error: DrivetrainError, *, keep_unstarted: bool) -> None:
        """End what an engine that is gone has left open; requests that brought nothing may wait for the next one."""
        self._hand_on(None)
        self._info, self._last_error, self._receiver = None, f"{error}; it is being started again", None
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_result(EngineStats())
        self._stats_waiters.clear()
        while self._sleep_waiters:
            _answer(self._sleep_waiters.popleft(), Slept("EngineDead", str(error)))
        for stream in list(self._streams.values()):
            again = keep_unstarted and not stream.started and stream.submissions <= _MAX_RESUBMISSIONS
            if stream.live and not again:
                self._fail(stream, error)

    def _fail(self, stream: _Stream, error: DrivetrainError) -> None:
        stream.live.clear()
        stream.sink.fail(error)

    def _take(self, messages: list[FromEngine]) -> None:
        self._hand_on(None)
        steps: list[Updates] = []
        for message in messages:
            if isinstance(message, Updates):
                steps.append(message)
            else:
                # In order: an answer that ended before a refusal or the end of the engine has ended.
                self._take_steps(steps)
                steps = []
                self._take_one(message)
        self._take_steps(steps)

    def _take_one(self, message: FromEngine) -> None:
        match message:
            case Stats(stats):
                waiters, self._stats_waiters = self._stats_waiters, []
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(stats)
            case Slept():
                if self._sleep_waiters:
                    _answer(self._sleep_waiters.popleft(), message)
            case Refused(request_id=request_id):
                stream = self._streams.get(request_id)
                if stream is not None:
                    self._fail(stream, raised(message))
            case Progress(phase):
                self._phases[phase.name] = phase
            case Ready(info):
                self._info = info
                self._ready.set()
                for stream in self._streams.values():
                    if not stream.live:  # it has ended, and its reader has not taken all yet
                        continue
                    stream.submissions += 1
                    self._write(Submit(stream.request, stream.line))
            case Updates() | Died():
                pass

    def _take_steps(self, steps: list[Updates]) -> None:
        """What one read brought. Several steps mean that this process is behind: a line gets its tokens at once."""
        now = time.perf_counter()
        if len(steps) == 1:
            step = steps[0]
            self._dispatch(step.updates)  # first and last tokens first; whoever is in there is in no line of this step
            self._left, self._left_came = zip(step.lines, step.token_ids, strict=True), now
            self._hand_on(_SLICE)
            return
        held: dict[int, list[int]] = {}
        for step in steps:
            for line, token_id in zip(step.lines, step.token_ids, strict=True):
                held.setdefault(line, []).append(token_id)
            for update in step.updates:
                stream = self._streams.get(update.request_id)
                if stream is not None and (tokens := held.pop(stream.line + update.index, None)):
                    self._dispatch_tokens(stream.line + update.index, tokens, now)
                self._dispatch([update])
        for line, tokens in held.items():
            self._dispatch_tokens(line, tokens, now)

    def _hand_on(self, count: int | None) -> None:
        """Hand on the tokens of the newest step that are left, or so many of them now and the rest soon."""
        lines, now, handed = self._lines, self._left_came, 0
        for line, token_id in islice(self._left, count):
            handed += 1
            take = lines.get(line)
            if take is not None:
                take(token_id, now)
        if handed == count:
            asyncio.get_running_loop().call_soon(self._hand_on, _SLICE)

    def _dispatch_tokens(self, line: int, token_ids: list[int], now: float) -> None:
        stream = self._line_owners.get(line)
        if stream is None:
            return
        if len(token_ids) == 1:
            self._lines[line](token_ids[0], now)
        else:
            index = line - stream.line
            stream.sink.take([Update(request_id=stream.request.request_id, index=index, token_ids=token_ids)])

    def _dispatch(self, updates: Iterable[Update]) -> None:
        parcels: dict[_Stream, list[Update]] = {}
        for update in updates:
            stream = self._streams.get(update.request_id)
            if stream is None:
                continue
            stream.started = True
            if update.finish_reason is not None:
                stream.live.discard(update.index)
            parcels.setdefault(stream, []).append(update)
        for stream, parcel in parcels.items():
            stream.sink.take(parcel)


class UpdateQueue:
    """A sink that is read as an asynchronous stream."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request_id = request.request_id
        self._live = set(range(request.params.n))
        self._updates: list[Update] = []
        self._error: DrivetrainError | None = None
        self._changed = asyncio.Event()

    def line(self, index: int) -> TokenLine:
        """Takes single tokens of one completion."""

        def take(token_id: int, now: float) -> None:
            self.take([Update(request_id=self._request_id, index=index, token_ids=[token_id])])

        return take

    def take(self, updates: list[Update]) -> None:
        """Queue updates."""
        self._updates += updates
        self._live.difference_update(update.index for update in updates if update.finish_reason is not None)
        self._changed.set()

    def fail(self, error: DrivetrainError) -> None:
        """End the stream with an error, after what is queued."""
        self._error = error
        self._changed.set()

    async def batches(self) -> AsyncGenerator[list[Update], None]:
        """All that is queued, each time there is something, until every completion has ended."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            updates, self._updates = self._updates, []
            if updates:
                yield updates
            if self._error is not None:
                raise self._error
            if not self._live and not self._updates:
                return


def _answer(waiter: asyncio.Future[Slept], slept: Slept) -> None:
    if not waiter.done():
        waiter.set_result(slept)
