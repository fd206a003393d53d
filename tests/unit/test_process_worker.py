"""The engine process's loop, over a real socket and an engine that says what it is told to."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.messages import EngineInfo, GenerateRequest, Update
from drivetrain.process.frames import HEADER, FromEngine, Ready, Shutdown, Submit, Updates, frame
from drivetrain.process.worker import Worker
from drivetrain.sampling import SamplingParams

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


def test_completions_that_end_in_the_same_step_all_arrive(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    worker, engine = Worker(listener), OneStepEngine()
    threading.Thread(target=worker._accept, daemon=True).start()
    running = threading.Thread(target=worker.run, args=(engine,))
    running.start()
    encoder = msgspec.msgpack.Encoder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(str(tmp_path / "s"))
        request = GenerateRequest(request_id="r", prompt_ids=[1], params=SamplingParams(n=3))
        client.sendall(frame(encoder, Submit(request)))
        stream = client.makefile("rb")
        assert isinstance(_next(stream), Ready)
        answer = _next(stream)
        client.sendall(frame(encoder, Shutdown(0.0)))
        running.join(5)
        assert not running.is_alive()
    listener.close()
    assert isinstance(answer, Updates)
    assert [update.index for update in answer.updates] == [0, 1, 2]


def _next(stream: Any) -> FromEngine:
    (size,) = HEADER.unpack(stream.read(HEADER.size))
    return msgspec.msgpack.Decoder(FromEngine).decode(stream.read(size))
