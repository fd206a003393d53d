"""The direct way of tokens: the same text as any other way, coalesced where a reader is behind, never lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from drivetrain.client import Sink
from drivetrain.errors import EngineDead, RequestFailed
from drivetrain.frontend import Frontend
from drivetrain.messages import GenerateRequest, Update
from drivetrain.sampling import SamplingParams
from drivetrain_server.answers.answer import Envelope, PromptRun
from drivetrain_server.answers.completions import CompletionShape
from drivetrain_server.answers.logprobs import TokenSpeller
from drivetrain_server.event_stream import JsonPieces
from drivetrain_server.exchange import DIRECT_EXTENSION, DirectWriter, Exchange
from drivetrain_server.generation import Generation
from drivetrain_server.telemetry import Telemetry
from fakes.engine import FakeEngine
from fakes.text import END, byte_tokenizer

TEXT = 'A "quoted"\tline, naïve café, 東京 🎉🎉 and\nplain words to the end.'


class HeldEngine(FakeEngine):
    """Keeps the sink, so that a test decides what arrives and when."""

    sink: Sink

    def attach(self, request: GenerateRequest, sink: Sink) -> None:
        self.sink = sink

    def detach(self, request_id: str) -> None:
        self.aborted.append(request_id)


class Flow:
    write_paused = False


class Connection:
    """An ASGI connection with a direct writer; what went which way."""

    def __init__(self) -> None:
        self.flow = Flow()
        self.asgi: list[bytes] = []
        self.direct: list[bytes] = []
        self.all: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()
        writer = DirectWriter(self._write, self.flow)
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "extensions": {DIRECT_EXTENSION: writer}}
        self.exchange = Exchange(scope, self._receive, self._send, request_id="r")

    def _write(self, chunk: bytes) -> None:
        assert not self.flow.write_paused, "written to a connection that is full"
        size, rest = chunk.split(b"\r\n", 1)
        body = rest.removesuffix(b"\r\n")
        assert int(size, 16) == len(body), "the chunk is as long as it says"
        self.direct.append(body)
        self.all.append(body)

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        await self.writable.wait()
        if message["type"] == "http.response.body":
            self.asgi.append(message["body"])
            self.all.append(message["body"])

    def events(self) -> list[dict[str, Any]]:
        parts = b"".join(self.all).split(b"\n\n")
        return [json.loads(part[6:]) for part in parts if part.startswith(b"data: {")]

    def text(self, choice: int = 0) -> str:
        choices = [each for event in self.events() for each in event["choices"]]
        return "".join(each["text"] for each in choices if each["index"] == choice)


class Streaming:
    """A completion that streams over `connection`."""

    def __init__(self, **params: Any) -> None:
        self.connection = Connection()
        self.engine = HeldEngine()
        self.telemetry = Telemetry()
        tokenizer = byte_tokenizer()
        frontend = Frontend(self.engine, tokenizer)
        self.params = SamplingParams(max_tokens=None, **params)
        request = GenerateRequest(request_id="r", prompt_ids=[65], params=self.params)
        shape = CompletionShape(
            Envelope(id="r", created=0, model="m", fingerprint="f"),
            TokenSpeller(tokenizer),
            num_logprobs=None,
            echo=False,
            token_ids=False,
            tell_prompt_logprobs=False,
        )
        self.run = PromptRun(token_ids=[65])
        generation = Generation(
            frontend,
            [request],
            [self.run],
            telemetry=self.telemetry,
            pieces=JsonPieces(tokenizer.visible_pieces),
            arrived=self.connection.exchange.arrived,
        )
        work = generation.stream(self.connection.exchange, shape, usage_event=False, usage_always=False)
        self.task = asyncio.create_task(work)

    async def begin(self) -> None:
        await asyncio.sleep(0)
        for index in range(self.params.n):
            self.update(index, [ord("<")])
        await self.settle()

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    def token(self, token_id: int, index: int = 0) -> None:
        self.engine.sink.line(index)(token_id, 1.0)

    def update(self, index: int, token_ids: list[int], **fields: Any) -> None:
        self.engine.sink.take([Update(request_id="r", index=index, token_ids=token_ids, **fields)])

    async def end(self, index: int = 0) -> None:
        self.update(index, [END], finish_reason="stop", stop_token_id=END)
        await self.settle()


async def test_whole_characters_go_straight_to_the_connection_one_event_a_token() -> None:
    streaming = Streaming()
    await streaming.begin()
    for token in b'say "hi"\t!':
        streaming.token(token)
    assert [json.loads(event[6:])["choices"][0]["text"] for event in streaming.connection.direct] == list('say "hi"\t!')
    assert len(streaming.connection.asgi) == 1, "only the first event went through the task"
    await streaming.end()
    await streaming.task
    assert streaming.connection.text() == '<say "hi"\t!'
    assert streaming.connection.all[-1].endswith(b"data: [DONE]\n\n")
    assert streaming.run.num_generated == 12
    reading = streaming.telemetry.reading(open_requests=0)
    counts = {name: sum(buckets) for name, _, buckets, _ in reading.histograms}
    assert counts["drivetrain_inter_token_seconds"] == 11
    assert counts["drivetrain_time_to_first_token_seconds"] == 1


async def test_a_reader_that_is_behind_gets_in_one_event_what_piled_up() -> None:
    streaming = Streaming()
    await streaming.begin()
    connection = streaming.connection
    streaming.token(ord("a"))
    connection.flow.write_paused = True
    connection.writable.clear()
    for token in b"bcdefgh":
        streaming.token(token)
        await asyncio.sleep(0)
    assert connection.text() == "<a"
    connection.flow.write_paused = False
    connection.writable.set()
    await streaming.settle()
    assert connection.text() == "<abcdefgh"
    assert len(connection.asgi) <= 3, "seven tokens came in at most two events"
    streaming.token(ord("i"))
    assert len(connection.direct) == 2, "and the stream goes the direct way again"
    await streaming.end()
    await streaming.task
    assert connection.text() == "<abcdefghi"


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("stop", [(), ("words",)])
async def test_any_grouping_and_any_pauses_give_the_same_text(seed: int, stop: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    streaming = Streaming(stop=stop, n=2)
    await streaming.begin()
    connection = streaming.connection
    left = {0: list(TEXT.encode()), 1: list(TEXT[::-1].encode())}
    while any(left.values()):
        index = rng.choice([index for index in left if left[index]])
        if rng.random() < 0.7:
            streaming.token(left[index].pop(0), index)
        else:
            count = rng.randrange(1, 9)
            streaming.update(index, left[index][:count])
            left[index] = left[index][count:]
        if rng.random() < 0.2:
            connection.flow.write_paused = rng.random() < 0.5
            connection.writable.set() if not connection.flow.write_paused else connection.writable.clear()
        if rng.random() < 0.3:
            await streaming.settle()
    connection.flow.write_paused = False
    connection.writable.set()
    for index in (0, 1):
        await streaming.end(index)
    await asyncio.wait_for(streaming.task, 5)
    assert connection.text(0) == "<" + (TEXT.split("words", maxsplit=1)[0] if stop else TEXT)
    assert connection.text(1) == "<" + TEXT[::-1]
    ends = [each["finish_reason"] for event in connection.events() for each in event["choices"]]
    assert sorted(filter(None, ends)) == ["stop", "stop"]


@pytest.mark.parametrize(
    ("hurt", "error"),
    [
        (lambda streaming: streaming.engine.sink.fail(EngineDead("killed")), EngineDead),
        (lambda streaming: streaming.update(0, [], finish_reason="error", error="page 7 was lost"), RequestFailed),
    ],
)
async def test_what_came_before_an_error_is_sent_before_it(
    hurt: Callable[[Streaming], None], error: type[Exception]
) -> None:
    streaming = Streaming()
    await streaming.begin()
    for token in b"abc":
        streaming.token(token)
    hurt(streaming)
    with pytest.raises(error):
        await streaming.task
    assert streaming.connection.text() == "<abc"
    assert streaming.engine.aborted == ["r"], "it lets go of the request"
