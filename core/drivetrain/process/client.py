"""The asyncio side of an engine process: starts it, speaks with it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec

from drivetrain.config import EngineConfig
from drivetrain.errors import DrivetrainError, EngineDead
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Phase, Update
from drivetrain.process.child import EngineProcess
from drivetrain.process.frames import (
    HEADER,
    Abort,
    AskStats,
    Died,
    FromEngine,
    Progress,
    Ready,
    Refused,
    ResetPrefixCache,
    Shutdown,
    Sleep,
    Slept,
    Stats,
    Submit,
    ToEngine,
    Updates,
    frame,
    raised,
)

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0
_STREAM_LIMIT = 1 << 20
_MAX_RESUBMISSIONS = 1
"""A request that ends engines is not handed to one after the other."""


@dataclass(slots=True, eq=False)
class _Stream:
    """One request as its reader sees it."""

    request: GenerateRequest
    live: set[int]
    updates: list[Update] = field(default_factory=list[Update])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    error: DrivetrainError | None = None
    started: bool = False
    submissions: int = 1

    def fail(self, error: DrivetrainError) -> None:
        self.error = error
        self.changed.set()


class ProcessEngine:
    """An `EngineClient` whose engine is another process.

    An engine that dies once it was ready is started again, at most `max_restarts` times within `restart_window_s`, and
    so is one that dies while it starts again. Requests that had brought tokens fail at once with `EngineDead`; those
    that had not are given to the next engine, once.
    """

    def __init__(self, config: EngineConfig, *, max_restarts: int = 3, restart_window_s: float = 600.0) -> None:
        self._config = config
        self._max_restarts = max_restarts
        self._restart_window_s = restart_window_s
        self._restarts: deque[float] = deque()
        self._info: EngineInfo | None = None
        self._failure: str | None = None
        self._last_error: str | None = None
        self._phases: dict[str, Phase] = {}
        self._streams: dict[str, _Stream] = {}
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._sleep_waiters: deque[asyncio.Future[Slept]] = deque()
        self._encoder = msgspec.msgpack.Encoder()
        self._writer: asyncio.StreamWriter | None = None
        self._process: EngineProcess | None = None
        self._launched: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._given_up: DrivetrainError | None = None

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

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return None if self._process is None else self._process.pid

    def launch(self) -> None:
        """Start the process ahead of `start`, so that it loads while this one still imports what it needs."""
        self._launched = EngineProcess(self._config)

    def abandon(self) -> None:
        """End a process that was launched, if `start` has not taken it over."""
        launched, self._launched = self._launched, None
        if launched is not None:
            launched.kill()
            launched.close()

    async def start(self) -> None:
        """Start the engine and return once it is ready.

        Raises:
            DrivetrainError: it could not start; the message is the engine's own.
        """
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        await self._ready.wait()
        if self._given_up is not None:
            raise self._given_up

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[list[Update], None]:
        """Stream the updates of a request; see `EngineClient.generate`."""
        if self._info is None:
            raise EngineDead(self._failure or self._last_error or "the engine is not ready yet")
        if request.request_id in self._streams:
            raise DrivetrainError(f"request_id {request.request_id!r} is already running")
        stream = _Stream(request, set(range(request.params.n)))
        self._streams[request.request_id] = stream
        try:
            self._write(Submit(request))
            while True:
                await stream.changed.wait()
                stream.changed.clear()
                updates, stream.updates = stream.updates, []
                if updates:
                    yield updates
                if stream.error is not None:
                    raise stream.error
                if not stream.live:
                    return
        finally:
            self._streams.pop(request.request_id, None)
            if stream.live and stream.error is None:
                self._write(Abort(request.request_id))

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

    async def shutdown(self, *, drain_s: float) -> None:
        """Let running requests finish for `drain_s` seconds, then abort them and end the process."""
        self._closing = True
        process = self._process
        if process is not None and process.returncode is None:
            if self._info is not None:
                self._write(Shutdown(drain_s))
            else:
                process.kill()  # it still loads, and nothing is lost
            try:
                async with asyncio.timeout(drain_s + _EXIT_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                _log.warning("the engine did not end within %.0f s and is killed", drain_s + _EXIT_TIMEOUT_S)
                process.kill()
                await process.wait()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])

    def _write(self, message: ToEngine) -> None:
        writer = self._writer
        if writer is not None and not writer.is_closing():
            writer.write(frame(self._encoder, message))

    async def _supervise(self) -> None:
        """Run the engine, again and again while that makes sense."""
        while True:
            try:
                error = await self._run_once()
            except OSError as reason:
                error = EngineDead(f"the engine process could not be run: {reason}")
            ready_before = self._ready.is_set()
            self._info, self._last_error, self._writer = None, f"{error}; it is being started again", None
            for waiter in self._stats_waiters:
                if not waiter.done():
                    waiter.set_result(EngineStats())
            self._stats_waiters.clear()
            while self._sleep_waiters:
                _answer(self._sleep_waiters.popleft(), Slept("EngineDead", str(error)))
            again = ready_before and not self._closing and self._may_restart()
            self._end_streams(error, keep_unstarted=again)
            if not again:
                self._given_up, self._failure = error, str(error)
                self._ready.set()
                return
            _log.error("engine: %s; starting it again", error)

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - self._restart_window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            _log.error("engine: it died %d times; giving up", len(self._restarts) + 1)
            return False
        self._restarts.append(now)
        return True

    def _end_streams(self, error: DrivetrainError, *, keep_unstarted: bool) -> None:
        for stream in list(self._streams.values()):
            if not (keep_unstarted and not stream.started and stream.submissions <= _MAX_RESUBMISSIONS):
                stream.fail(error)

    async def _run_once(self) -> DrivetrainError:
        """Start the process, serve until it ends, and say why it ended."""
        last_words: Died | None = None
        launched, self._launched = self._launched, None
        with launched or EngineProcess(self._config) as process:
            self._process = process
            connection = await self._connect(process)
            if connection is not None:
                reader, self._writer = connection
                last_words = await self._read(reader)
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
            process.let_go()
            try:
                async with asyncio.timeout(_EXIT_TIMEOUT_S):
                    status = await process.wait()
            except TimeoutError:
                process.kill()
                status = await process.wait()
        if last_words is not None:
            return (
                raised(Refused("", last_words.kind, last_words.message))
                if self._info is None
                else EngineDead(f"the engine ended: {last_words.kind}: {last_words.message}")
            )
        return EngineDead(f"the engine process {_describe_status(status)}")

    async def _connect(self, process: EngineProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect once the process listens; None if it ended first."""
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        while process.returncode is None and time.monotonic() < deadline:
            try:
                return await asyncio.open_unix_connection(process.socket_path, limit=_STREAM_LIMIT)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.02)
        return None

    async def _read(self, reader: asyncio.StreamReader) -> Died | None:
        """Take frames in until the connection ends."""
        decoder = msgspec.msgpack.Decoder(FromEngine)
        last_words: Died | None = None
        try:
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = decoder.decode(await reader.readexactly(size))
                if isinstance(message, Died):
                    last_words = message
                else:
                    self._take(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            return last_words
        except msgspec.MsgspecError as error:
            return Died(type(error).__name__, f"a frame of the engine could not be read: {error}")

    def _take(self, message: Updates | Progress | Ready | Refused | Stats | Slept) -> None:
        match message:
            case Updates(updates):
                self._dispatch(updates)
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
                    stream.fail(raised(message))
            case Progress(phase):
                self._phases[phase.name] = phase
            case Ready(info):
                self._info = info
                self._ready.set()
                for stream in self._streams.values():
                    stream.submissions += 1
                    self._write(Submit(stream.request))

    def _dispatch(self, updates: list[Update]) -> None:
        for update in updates:
            stream = self._streams.get(update.request_id)
            if stream is None:
                continue
            stream.started = True
            stream.updates.append(update)
            if update.finish_reason is not None:
                stream.live.discard(update.index)
            stream.changed.set()


def _answer(waiter: asyncio.Future[Slept], slept: Slept) -> None:
    if not waiter.done():
        waiter.set_result(slept)


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
