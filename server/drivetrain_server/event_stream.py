"""A streamed answer: from the engine's updates to bytes on the connection, without a task switch a token.

The common case, one token of whole characters for one reader that keeps up, is a dictionary look-up, a join of four
byte strings and a write. Everything else (a first token, a broken character, stop strings, log-probabilities) goes
through `AnswerText` and the route's shape. A reader that is behind gets in one event what has piled up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import orjson

from drivetrain.client import TokenLine
from drivetrain.completion_text import TextDelta
from drivetrain.errors import DrivetrainError
from drivetrain.frontend import Frontend
from drivetrain.messages import GenerateRequest, Update
from drivetrain_server.answers.answer import PromptRun
from drivetrain_server.exchange import DirectWriter, Exchange, FlowState, escaped_line_ends
from drivetrain_server.telemetry import Telemetry


class JsonPieces(dict[int, bytes | None]):
    """Token id to its text as JSON, filled as ids are met; None where it is no text or no whole characters."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def __missing__(self, token_id: int) -> bytes | None:
        raw = self._pieces[token_id]
        try:
            value = escaped_line_ends(orjson.dumps(raw.decode())) if raw else None
        except UnicodeDecodeError:
            value = None
        self[token_id] = value
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a stream shares with the rest of its request.

    Attributes:
        render: deltas to events, which it counts; may be empty.
        splice: of a choice, what stands around the text of an event that tells nothing else; see `AnswerShape.splice`.
        last_token: when the newest token of each choice came; kept up to date.
    """

    exchange: Exchange
    prompt: PromptRun
    render: Callable[[list[TextDelta]], bytes]
    splice: Callable[[int], tuple[bytes, bytes] | None]
    pieces: JsonPieces
    telemetry: Telemetry
    last_token: list[float]


class EventStream:
    """The stream of one prompt. A `Sink` of the engine; `run` is the request's own task.

    The task begins the answer, waits for a connection that is full, and ends the answer. In between nothing of it runs.
    """

    def __init__(self, frontend: Frontend, request: GenerateRequest, course: Course) -> None:
        self._engine = frontend.client
        self._request = request
        self._course = course
        self._text = frontend.answer_text(request, self._engine.abort, turns=course.prompt.turns)
        self._lanes = [_Lane(self, index, course) for index in range(request.params.n)]
        self._direct: DirectWriter | None = None
        self._backlog: list[Update] = []
        self._rest = b""
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Send every event of the answer.

        Raises:
            DrivetrainError: the engine refused the request, failed it, or ended.
        """
        self._engine.attach(self._request, self)
        try:
            while self._text.num_live:
                await self._wake.wait()
                self._wake.clear()
                await self._send_backlog()
                if self._error is not None:
                    raise self._error
                self._resume()
        finally:
            self._engine.detach(self._request.request_id)

    async def _send_backlog(self) -> None:
        """Send what has come, together; while that waits, more may come."""
        while self._backlog or self._rest:
            updates, self._backlog = self._backlog, []
            events, self._rest = self._rest, b""
            if updates:
                events += self._course.render(self._text.push(updates))
            if events:
                await self._course.exchange.event(events)

    def line(self, index: int) -> TokenLine:
        return self._lanes[index].take

    def take(self, updates: list[Update]) -> None:
        direct = self._direct
        if direct is None or direct.flow.write_paused:
            self._backlog += updates
            self._stop()
            return
        try:
            events = self._course.render(self._text.push(updates))
        except Exception as error:
            self._error = error
            self._stop()
            return
        if not self._text.num_live:
            self._rest = events
            self._stop()
            return
        if events:
            events = escaped_line_ends(events)
            direct.write(b"%x\r\n%b\r\n" % (len(events), events))
            self._course.exchange.last_sent = perf_counter()
        for index in {update.index for update in updates}:
            self._splice(self._lanes[index])

    def fail(self, error: DrivetrainError) -> None:
        self._error = error
        self._stop()

    def take_one(self, index: int, token_id: int) -> None:
        """Take a token that its lane cannot put into words by itself."""
        self.take([Update(request_id=self._request.request_id, index=index, token_ids=[token_id])])

    def _stop(self) -> None:
        """Leave the direct way: from here on everything waits for the task."""
        self._direct = None
        for lane in self._lanes:
            lane.close()
        self._wake.set()

    def _resume(self) -> None:
        self._direct = self._course.exchange.direct
        for lane in self._lanes:
            self._splice(lane)

    def _splice(self, lane: _Lane) -> None:
        if self._direct is None or not self._text.completions[lane.index].settled:
            lane.close()
        else:
            lane.open(self._direct)


class _Lane:
    """The short way of one completion: open while each token's event is known but for its text."""

    __slots__ = ("_before", "_course", "_flow", "_heads", "_pieces", "_stream", "_tail", "_write", "index")

    def __init__(self, stream: EventStream, index: int, course: Course) -> None:
        self.index = index
        self._stream = stream
        self._course = course
        self._pieces = course.pieces
        self._write: Callable[[bytes], None] | None = None
        self._flow: FlowState | None = None
        self._before = self._tail = b""
        self._heads: dict[int, bytes] = {}
        """By length of the text: the size of the chunk, and the event up to the text."""

    def open(self, direct: DirectWriter) -> None:
        """Go the short way, if the shape lets it."""
        around = self._course.splice(self.index)
        if around is None:
            self.close()
            return
        before, after = around
        tail = after + b"\r\n"
        if (before, tail) != (self._before, self._tail):
            self._before, self._tail, self._heads = before, tail, {}
        self._write, self._flow = direct.write, direct.flow

    def close(self) -> None:
        """Hand every token to the stream."""
        self._write = None

    def take(self, token_id: int, now: float) -> None:
        write, piece = self._write, self._pieces[token_id]
        if write is None or piece is None or self._flow.write_paused:  # pyright: ignore[reportOptionalMemberAccess]
            self._stream.take_one(self.index, token_id)
            return
        head = self._heads.get(len(piece)) or self._head(len(piece))
        write(b"".join((head, piece, self._tail)))
        course = self._course
        course.exchange.last_sent = now
        course.prompt.num_generated += 1
        last_token = course.last_token
        course.telemetry.inter_token(now - last_token[self.index])
        last_token[self.index] = now

    def _head(self, length: int) -> bytes:
        size = len(self._before) + length + len(self._tail) - 2
        head = self._heads[length] = b"%x\r\n%b" % (size, self._before)
        return head
