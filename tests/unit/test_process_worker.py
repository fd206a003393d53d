"""The engine process's loop, over a real socket and an engine that says what it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drivetrain.grammar import Grammar
from drivetrain.messages import EngineInfo, GenerateRequest, Update
from drivetrain.process.frames import HEADER, Abort, FromEngine, Ready, Shutdown, Submit, Updates, frame
from drivetrain.process.worker import Worker
from drivetrain.sampling import SamplingParams
from fakes.waiting import LIMIT_S
from fakes.worker import listening_worker

INFO = EngineInfo(
    model="m",
    architecture="a",
    backend="b",
    device="d",
    dtype="float32",
    vocab_size=9,
    max_model_len=9,
    num_pages=2,
    page_size=1,
    max_num_rows=1,
    max_step_tokens=1,
    kv_bytes=1,
    weight_bytes=1,
)


class OneStepEngine:
    """Ends every completion of a request in the same step."""

    info = INFO

    def __init__(self) -> None:
        self.waiting: list[GenerateRequest] = []
        self.grammars: Any = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def submit(self, request: GenerateRequest) -> None:
        self.waiting.append(request)

    def step(self) -> list[Update]:
        requests, self.waiting = self.waiting, []
        return [
            Update(request_id=request.request_id, index=index, token_ids=[index], finish_reason="length")
            for request in requests
            for index in range(request.params.n)
        ]

    def prepare_more(self) -> bool:
        return False

    def is_live(self, request_id: str) -> bool:
        return False

    def abort(self, request_id: str, index: int | None = None, *, error: str | None = None) -> None:
        raise AssertionError("nothing is left to abort")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with listening_worker(tmp_path / "s") as listening:
        yield listening


def test_completions_that_end_in_the_same_step_all_arrive(worker: Worker, tmp_path: Path) -> None:
    running = threading.Thread(target=worker.run, args=(OneStepEngine(),))
    running.start()
    encoder = msgspec.msgpack.Encoder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(tmp_path / "s"))
        request = GenerateRequest(request_id="r", prompt_ids=[1], params=SamplingParams(n=3))
        client.sendall(frame(encoder, Submit(request)))
        stream = client.makefile("rb")
        assert isinstance(_next(stream), Ready)
        answer = _next(stream)
        client.sendall(frame(encoder, Shutdown(0.0)))
        running.join(LIMIT_S)
        assert not running.is_alive()
    assert isinstance(answer, Updates)
    assert [update.index for update in answer.updates] == [0, 1, 2]


class SlowGrammars:
    """Compiles when it is told to."""

    def __init__(self) -> None:
        self.known: set[Grammar] = set()
        self.go_on = threading.Event()

    def has(self, grammar: Grammar) -> bool:
        return grammar in self.known

    def compile(self, grammar: Grammar) -> None:
        assert self.go_on.wait(LIMIT_S)
        self.known.add(grammar)


def test_a_grammar_is_compiled_beside_other_requests_and_not_for_a_client_that_left(
    worker: Worker, tmp_path: Path
) -> None:
    engine = OneStepEngine()
    engine.grammars = SlowGrammars()
    submitted: list[str] = []
    engine.submit = lambda request: (submitted.append(request.request_id), engine.waiting.append(request))  # type: ignore
    running = threading.Thread(target=worker.run, args=(engine,))
    running.start()
    encoder = msgspec.msgpack.Encoder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(tmp_path / "s"))
        stream = client.makefile("rb")
        assert isinstance(_next(stream), Ready)
        for request_id, grammar in (("left", "a"), ("stays", "b"), ("plain", None)):
            params = SamplingParams(grammar=None if grammar is None else Grammar(kind="regex", value=grammar))
            request = GenerateRequest(request_id=request_id, prompt_ids=[1], params=params)
            client.sendall(frame(encoder, Submit(request)))
        client.sendall(frame(encoder, Abort("left")))
        first = _next(stream)
        assert isinstance(first, Updates) and [update.request_id for update in first.updates] == ["plain"]
        engine.grammars.go_on.set()
        second = _next(stream)
        assert isinstance(second, Updates) and [update.request_id for update in second.updates] == ["stays"]
        client.sendall(frame(encoder, Shutdown(0.0)))
        running.join(LIMIT_S)
        assert not running.is_alive()
    assert submitted == ["plain", "stays"]


def _next(stream: Any) -> FromEngine:
    (size,) = HEADER.unpack(stream.read(HEADER.size))
    return msgspec.msgpack.Decoder(FromEngine).decode(stream.read(size))
