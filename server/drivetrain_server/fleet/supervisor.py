"""The process that several API processes belong to: it has the address and the engine, and serves nothing itself."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain.errors import DrivetrainError, EngineError
from drivetrain.process.client import ProcessEngine
from drivetrain.process.frames import Refused, raised
from drivetrain_server.fleet.channel import Channel
from drivetrain_server.fleet.frames import (
    AllReady,
    AskEverything,
    Begin,
    Count,
    Counted,
    Drain,
    Drained,
    End,
    Enter,
    Entered,
    Everything,
    Failed,
    Forget,
    FromMember,
    GiveUp,
    Keep,
    Leave,
    Recall,
    Recalled,
    Up,
)
from drivetrain_server.response_shelves import ResponseShelves
from drivetrain_server.telemetry import Reading, merged

logger = logging.getLogger("drivetrain.server")

COUNT_TIMEOUT_S = 1.0
WATCH_PERIOD_S = 0.2
END_TIMEOUT_S = 5.0
MAX_DEATHS = 5
DEATHS_WINDOW_S = 60.0


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for one member, kept when it dies: its listening socket stays open, and connections wait at it."""

    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None
    channel: Channel[FromMember] | None = None
    reading: Reading = field(default_factory=Reading)
    open_by_key: Counter[str] = field(default_factory=Counter[str])
    up: bool = False
    drained: int | None = None
    counted: asyncio.Event = field(default_factory=asyncio.Event)


class Fleet:
    """`config.api_processes` API processes, started again when they die.

    Args:
        engine: it listens on `engine_socket`.
        listeners: one a process, all on one address.

    Attributes:
        all_up: set once every member takes requests, or one cannot start.
        error: why one cannot start.
    """

    def __init__(
        self,
        engine: ProcessEngine,
        engine_socket: str,
        engine_config: EngineConfig,
        config: ServerConfig,
        listeners: list[socket.socket],
    ) -> None:
        self.all_up = asyncio.Event()
        self.error: DrivetrainError | None = None
        self._engine = engine
        self._engine_socket = engine_socket
        self._engine_config = engine_config
        self._config = config
        self._seats = [_Seat(listener) for listener in listeners]
        self._responses = ResponseShelves()
        self._ended = Reading()
        self._ending = False
        self._last_drain: Drain | None = None
        self._told_failure = False
        self._deaths: deque[float] = deque()
        self._answering: set[asyncio.Task[None]] = set()
        self._all_drained = asyncio.Event()

    async def run(self) -> None:
        """Keep every seat filled until `end`.

        Raises:
            EngineError: API processes die one after the other.
        """
        watching = asyncio.create_task(self._watch_engine())
        seats = [asyncio.create_task(self._fill(seat)) for seat in self._seats]
        try:
            await asyncio.gather(*seats)
        finally:
            watching.cancel()
            self.end()
            await asyncio.wait(seats)

    async def drain(self, limit_s: float) -> int:
        """Let members refuse new work and finish what is open for `limit_s` seconds; said again, it ends that.

        Returns:
            Requests that were ended before they had finished.
        """
        self._last_drain = Drain(limit_s)
        self._tell(self._last_drain)
        await self._all_drained.wait()
        return sum(seat.drained or 0 for seat in self._seats)

    def end(self) -> None:
        """End every member."""
        self._ending = True
        self._tell(End())

    def kill(self) -> None:
        """End members that did not end when they were told."""
        for seat in self._seats:
            if seat.process is not None and seat.process.poll() is None:
                logger.warning("an API process did not end and is killed")
                seat.process.kill()

    async def _fill(self, seat: _Seat) -> None:
        late = False
        while not self._ending:
            await self._run_member(seat, late=late)
            late = seat.up or late
            self._ended = merged([self._ended, msgspec.structs.replace(seat.reading, open_requests=0)])
            seat.reading, seat.channel = Reading(), None
            seat.open_by_key.clear()
            seat.counted.set()
            if self._last_drain is not None:
                self._note_drained(seat, 0)
                return
            if not self._ending:
                status = seat.process.returncode if seat.process is not None else None
                logger.error("an API process ended with status %s and is started again", status)
                self._note_death()

    async def _run_member(self, seat: _Seat, *, late: bool) -> None:
        ours, theirs = socket.socketpair()
        numbers = (seat.listener.fileno(), theirs.fileno())
        command = [sys.executable, "-P", "-m", "drivetrain_server.fleet.member", *map(str, numbers)]
        with theirs:
            process = seat.process = subprocess.Popen(command, pass_fds=numbers)
        channel = seat.channel = await Channel[FromMember].open(ours, msgspec.msgpack.Decoder(FromMember))
        channel.send(Begin(self._engine_config, self._config, self._engine_socket, late))
        if self._engine.failure is not None and self._told_failure:
            channel.send(GiveUp(self._engine.failure))
        if self.all_up.is_set():
            channel.send(AllReady())
        if self._last_drain is not None:
            channel.send(self._last_drain)
        if self._ending:
            channel.send(End())
        while (message := await channel.receive()) is not None:
            self._take(seat, channel, message)
        await channel.close()
        await asyncio.to_thread(_reap, process)

    def _take(self, seat: _Seat, channel: Channel[FromMember], message: FromMember) -> None:
        match message:
            case Up():
                seat.up = True
                if all(each.up for each in self._seats) and not self.all_up.is_set():
                    self.all_up.set()
                    self._tell(AllReady())
            case Failed(kind, text) if self.all_up.is_set() and self._engine.failure is None:
                logger.error("an API process could not start again: %s: %s", kind, text)
                channel.send(End())  # counts as a death: it is tried again, but not for ever
            case Failed(kind, text):
                self.error = raised(Refused("", kind, text))
                self.all_up.set()
            case Counted(reading):
                seat.reading = reading
                seat.counted.set()
            case AskEverything():
                task = asyncio.get_running_loop().create_task(self._answer_everything(channel))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case Enter(key):
                count = sum(each.open_by_key[key] for each in self._seats)
                limit = self._config.max_requests_per_key
                refused = limit is not None and count >= limit
                if not refused:
                    seat.open_by_key[key] += 1
                channel.send(Entered(count if refused else None))
            case Leave(key):
                seat.open_by_key[key] -= 1
            case Keep(key, response_id, raw):
                self._responses.keep(key, response_id, raw)
                channel.send(Recalled(None))
            case Recall(key, response_id):
                channel.send(Recalled(self._responses.recall(key, response_id)))
            case Forget(key, response_id):
                channel.send(Recalled(self._responses.forget(key, response_id)))
            case Drained(ended):
                self._note_drained(seat, ended)

    async def _answer_everything(self, channel: Channel[FromMember]) -> None:
        """Gather what every member has counted; one that does not answer is told as it last was."""
        asked = [seat for seat in self._seats if seat.channel is not None]
        for seat in asked:
            seat.counted.clear()
        self._tell(Count())
        waits = [asyncio.create_task(seat.counted.wait()) for seat in asked]
        _, late = await asyncio.wait(waits, timeout=COUNT_TIMEOUT_S)
        for task in late:
            task.cancel()
        channel.send(Everything([*(seat.reading for seat in self._seats), self._ended]))

    async def _watch_engine(self) -> None:
        while not self._ending:
            if self._engine.failure is not None and not self._told_failure:
                self._told_failure = True
                self._tell(GiveUp(self._engine.failure))
            await asyncio.sleep(WATCH_PERIOD_S)

    def _note_drained(self, seat: _Seat, ended: int) -> None:
        seat.drained = ended if seat.drained is None else seat.drained
        if all(each.drained is not None for each in self._seats):
            self._all_drained.set()

    def _note_death(self) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) > MAX_DEATHS:
            raise EngineError(
                f"API processes died {len(self._deaths)} times within {DEATHS_WINDOW_S:g} s; "
                "what they printed says why; the server ends"
            )

    def _tell(self, message: msgspec.Struct) -> None:
        for seat in self._seats:
            if seat.channel is not None:
                seat.channel.send(message)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
