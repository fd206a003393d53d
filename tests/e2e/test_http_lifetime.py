"""Clients that go away, engines that die, servers that drain."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from drivetrain.errors import ConfigError, OutOfMemory, Overloaded, RequestFailed
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer
from fakes.waiting import LIMIT_S, until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says("a long answer " * 20))


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(engine) as running:
        yield running


def _connect(server: RunningServer, body: dict[str, object], *, cut: int = 0) -> socket.socket:
    """A connection on which the request (less its last `cut` bytes) was sent."""
    raw = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n"
    head += "content-type: application/json\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S)
    connection.sendall(head.encode() + raw[: len(raw) - cut])
    return connection


def _asked(server: RunningServer, **fields: object) -> httpx.Response:
    """The answer, which may wait at the engine's gate."""
    return httpx.post(server.url + PATH, json=CHAT | fields, timeout=LIMIT_S)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("gate_at", [0, 2], ids=["queued or prefilling", "decoding"])
def test_client_gone_while_the_engine_works_aborts_the_request(
    engine: FakeEngine, server: RunningServer, stream: bool, n: int, gate_at: int
) -> None:
    engine.gate_at = gate_at
    connection = _connect(server, CHAT | {"stream": stream, "n": n})
    assert engine.waiting_at_gate.wait(LIMIT_S)
    connection.close()
    assert engine.abort_seen.wait(LIMIT_S)
    assert engine.aborted == [engine.requests[0].request_id]
    until(lambda: server.app.lifecycle.num_open == 0)
    assert "drivetrain_client_disconnects_total 1.0" in httpx.get(f"{server.url}/metrics").text


def test_client_gone_before_its_body_is_complete_never_reaches_the_engine(
    engine: FakeEngine, server: RunningServer
) -> None:
    _connect(server, CHAT, cut=5).close()
    until(lambda: "drivetrain_client_disconnects_total 1.0" in httpx.get(f"{server.url}/metrics").text)
    assert engine.requests == []


def test_client_gone_with_several_prompts_aborts_each(engine: FakeEngine, server: RunningServer) -> None:
    engine.gate_at = 1
    with (
        httpx.Client(base_url=server.url) as client,
        client.stream(
            "POST", "/v1/completions", json={"model": "tiny", "prompt": ["a", "b"], "stream": True, "max_tokens": 50}
        ) as answer,
    ):
        assert next(answer.iter_lines()).startswith("data: ")
    until(lambda: len(engine.aborted) == 2)


def test_reader_that_stops_is_cut_off(engine: FakeEngine) -> None:
    engine.script = says("x" * 400)
    with RunningServer(engine, stall_s=0.2, max_stream_bytes=4096) as server:
        body = CHAT | {"stream": True, "n": 128, "logprobs": True, "top_logprobs": 20, "max_tokens": 400}
        connection = _connect(server, body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert engine.abort_seen.wait(LIMIT_S)
        until(lambda: "drivetrain_slow_readers_total 1.0" in httpx.get(f"{server.url}/metrics").text)
        connection.close()


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Overloaded("full", retry_after_s=7.2), 503, "overloaded", "8"),
        (Overloaded("full", retry_after_s=9999), 503, "overloaded", "120"),
        (OutOfMemory("no pages"), 503, "out_of_memory", "5"),
        (RequestFailed("lost"), 503, "request_failed", "1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_engine_have_status_and_retry_after(
    engine: FakeEngine, server: RunningServer, error: Exception, status: int, code: str, retry_after: str, stream: bool
) -> None:
    engine.refuse = error  # type: ignore[assignment]
    answer = httpx.post(server.url + PATH, json=CHAT | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["retry-after"] == retry_after


def test_mistake_of_ours_is_a_500_without_its_details(engine: FakeEngine, server: RunningServer) -> None:
    def broken(*_: object) -> list[int]:
        raise ZeroDivisionError("secret")

    engine.script = broken
    answer = httpx.post(server.url + PATH, json=CHAT, headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "find-me"
    assert "find-me" in answer.text and "secret" not in answer.text


def test_mistake_behind_a_control_route_is_a_500_in_openai_shape(
    engine: FakeEngine, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "stats", broken)
    answer = httpx.get(f"{server.url}/metrics", headers={"x-request-id": "find-me"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "find-me" in answer.text and "secret" not in answer.text


def test_engine_that_dies_ends_streams_with_an_error_event_and_turns_readiness_red(
    engine: FakeEngine, server: RunningServer
) -> None:
    engine.die_at = 3
    lines = httpx.post(server.url + PATH, json=CHAT | {"stream": True}).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1]] == ["", "a", " ", "l"]
    assert httpx.get(f"{server.url}/health").status_code == 503
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["reason"]) == (503, "failed", "killed by signal 9")
    later = httpx.post(server.url + PATH, json=CHAT)
    assert (later.status_code, later.json()["error"]["code"]) == (503, "engine_dead")
    assert "drivetrain_ready 0.0" in httpx.get(f"{server.url}/metrics").text


def test_engine_that_dies_answers_whole_requests_with_503(engine: FakeEngine, server: RunningServer) -> None:
    engine.die_at = 3
    answer = httpx.post(server.url + PATH, json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")


def test_start_is_visible_and_requests_wait_outside(engine: FakeEngine) -> None:
    engine.start_gate = threading.Event()
    with RunningServer(engine, wait=False) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        assert ready.json()["phases"][0]["name"] == "weights"
        assert "retry-after" in ready.headers
        for answer in (client.post(PATH, json=CHAT), client.get("/v1/models")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
            assert 1 <= int(answer.headers["retry-after"]) <= 120
        with client.stream("GET", "/ready", headers={"accept": "text/event-stream"}) as events:
            lines = events.iter_lines()
            assert next(lines) == "event: starting"
            engine.start_gate.set()
            assert "event: ready" in list(lines)
        assert client.get("/ready").status_code == 200
        assert client.post(PATH, json=CHAT).status_code == 200


def test_engine_that_cannot_start_is_told_by_ready(engine: FakeEngine) -> None:
    engine.start_error = ConfigError("limits.num_pages: got 1, expected 2")
    with RunningServer(engine) as server:
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert ready.json()["reason"] == "limits.num_pages: got 1, expected 2"
        assert httpx.post(server.url + PATH, json=CHAT).json()["error"]["code"] == "engine_dead"


def test_drain_finishes_what_runs_and_refuses_what_comes(engine: FakeEngine, server: RunningServer) -> None:
    engine.gate_at = 1
    answers: list[httpx.Response] = []
    running = threading.Thread(target=lambda: answers.append(_asked(server)))
    running.start()
    assert engine.waiting_at_gate.wait(LIMIT_S)
    ended: list[int] = []
    draining = threading.Thread(target=lambda: ended.append(server.call(server.app.lifecycle.drain(LIMIT_S))))
    draining.start()
    until(lambda: httpx.get(f"{server.url}/ready").json()["status"] == "draining")
    refused = httpx.post(server.url + PATH, json=CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    engine.open_gate()
    running.join(LIMIT_S)
    draining.join(LIMIT_S)
    assert answers[0].status_code == 200
    assert answers[0].json()["choices"][0]["finish_reason"] == "stop"
    assert ended == [0]


def test_drain_ends_what_is_left_with_an_error(engine: FakeEngine, server: RunningServer) -> None:
    engine.gate_at = 1
    texts: list[str] = []
    statuses: list[int] = []
    streamed = threading.Thread(target=lambda: texts.append(_asked(server, stream=True).text))
    whole = threading.Thread(target=lambda: statuses.append(_asked(server).status_code))
    streamed.start()
    whole.start()
    until(lambda: engine.num_at_gate == 2)
    assert server.call(server.app.lifecycle.drain(0.05)) == 2
    streamed.join(LIMIT_S)
    whole.join(LIMIT_S)
    assert json.loads(texts[0].strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "draining"
    assert statuses == [503]
    assert len(engine.aborted) == 2
