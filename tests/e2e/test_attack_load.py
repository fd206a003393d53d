"""More load than there is room for, readers that stop, clients that leave: refused in order, and nothing is kept."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.canary import Canary
from fakes.serve_process import ServeProcess
from fakes.waiting import until

LIMITS = """
dtype = "float32"

[limits]
max_num_seqs = 4
max_step_tokens = 64
max_model_len = 2048
max_waiting = 6
num_pages = 800

[server]
api_keys = ["one", "two"]
max_requests_per_key = 10
metrics_public = true
request_timeout_s = 6

[backend_options.cpu]
threads = 1
"""
PATH = "/v1/completions"
BODY = {"model": "tiny", "prompt": "Load:", "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def limited(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("limited")
    with ServeProcess(folder, tiny_model, LIMITS) as server:
        yield server
        assert server.end() == 0


def post(server: ServeProcess, key: str = "one", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(server.url + PATH, json=BODY | body, headers=headers, timeout=60)


def test_a_full_queue_is_503_with_retry_after_and_recovers(limited: ServeProcess) -> None:
    with ThreadPoolExecutor(20) as pool:
        with limited.engine_held():
            asked = [pool.submit(post, limited, "one" if at % 2 else "two", max_tokens=60) for at in range(20)]
            until(lambda: limited.num_open == 20)
        answers = [each.result() for each in asked]
    by_status = {status: [each for each in answers if each.status_code == status] for status in (200, 503)}
    assert len(by_status[200]) + len(by_status[503]) == 20
    assert len(by_status[200]) >= 6
    assert by_status[503]
    for refused in by_status[503]:
        assert refused.json()["error"]["code"] == "overloaded"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
    for served in by_status[200]:
        assert served.json()["usage"]["completion_tokens"] == 60
    assert post(limited, max_tokens=2).status_code == 200
    limited.assert_all_pages_back(799)


@pytest.mark.slow
def test_one_key_at_its_limit_is_429_while_another_is_served(limited: ServeProcess) -> None:
    opened: list[socket.socket] = []
    try:
        for count in (4, 6):  # those that run, those that wait
            opened += [_open(limited.port, BODY | {"max_tokens": 2000, "stream": True}) for _ in range(count)]
            until(lambda: limited.metric("drivetrain_requests_running") == 4)
        until(lambda: limited.num_open == 10)
        refused = post(limited, "one", max_tokens=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        for connection in opened[:8]:
            connection.close()
        until(lambda: limited.num_open == 2)
        assert post(limited, "two", max_tokens=1).status_code == 200
        assert post(limited, "one", max_tokens=1).status_code == 200
    finally:
        for connection in opened:
            connection.close()
    limited.assert_all_pages_back(799)


@pytest.mark.parametrize("key", ["three", "ONE", "one two", "Bearer"])
def test_a_wrong_key_opens_nothing(limited: ServeProcess, key: str) -> None:
    assert post(limited, key, max_tokens=1).status_code == 401
    for path in ("/v1/models", "/version", "/openapi.json", "/nothing"):
        assert httpx.get(limited.url + path, headers={"authorization": f"Bearer {key}"}).status_code == 401


def test_a_request_past_its_time_is_ended(limited: ServeProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, limited, max_tokens=2000, n=6, logprobs=20)
        until(lambda: limited.pages()["used"] > 0)
        with limited.engine_held():  # or a fast machine could answer in time
            time.sleep(6)
            assert not asked.done(), "it was ended before its time"
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "request_failed")
    assert "time limit" in answer.json()["error"]["message"]
    limited.assert_all_pages_back(799)


def test_a_reader_that_stops_is_ended_and_frees_its_pages(tiny_server: ServeProcess) -> None:
    ended = tiny_server.metric("drivetrain_slow_readers_total")
    body = BODY | {"max_tokens": 1000, "n": 8, "stream": True, "logprobs": 20, "return_token_ids": True}
    with _open(tiny_server.port, body, receive_buffer=4096) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        until(lambda: tiny_server.pages()["used"] > 0)
        until(lambda: tiny_server.metric("drivetrain_slow_readers_total") == ended + 1)
        tiny_server.assert_all_pages_back(599)
    assert tiny_server.complete(prompt="Hi", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("phase", "body"),
    [
        ("queued", {"max_tokens": 40}),
        ("decoding", {"max_tokens": 1500}),
        ("streaming", {"max_tokens": 1500, "stream": True}),
        ("streaming three", {"max_tokens": 1500, "stream": True, "n": 3, "temperature": 1}),
        ("decoding of two prompts", {"max_tokens": 1500, "prompt": ["one", "two"]}),
    ],
)
def test_a_client_that_leaves_frees_its_pages_whatever_the_engine_is_doing(
    limited: ServeProcess, phase: str, body: dict[str, Any]
) -> None:
    def gauge(name: str) -> float:
        return limited.metric(f"drivetrain_requests_{name}")

    aside: list[socket.socket] = []
    if phase == "queued":
        aside = [_open(limited.port, BODY | {"max_tokens": 1500, "stream": True}) for _ in range(4)]
        until(lambda: gauge("running") == 4)
    steps = limited.metric("drivetrain_generated_tokens_total")
    with _open(limited.port, BODY | body) as connection:
        if phase == "queued":
            until(lambda: gauge("waiting") == 1)
        elif "stream" in phase:
            assert b"data: {" in connection.recv(65536) + connection.recv(65536)
        else:
            until(lambda: limited.metric("drivetrain_generated_tokens_total") > steps + 4)
    until(lambda: gauge("waiting") == 0 and gauge("running") == len(aside))
    for each in aside:
        each.close()
    limited.assert_all_pages_back(799)
    until(lambda: limited.num_open == 0)


def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_pages(limited: ServeProcess) -> None:
    # A first token may come before the client has left: then another one leaves, with a prompt that is in no page yet.
    for attempt in range(20):
        generated = limited.metric("drivetrain_generated_tokens_total")
        prompt = [10 + (at * (attempt + 3)) % 397 for at in range(1900)]
        with _open(limited.port, BODY | {"prompt": prompt, "max_tokens": 4}):
            until(lambda: limited.pages()["used"] > 0)
        limited.assert_all_pages_back(799)
        until(lambda: limited.num_open == 0)
        if limited.metric("drivetrain_generated_tokens_total") == generated:
            return
    raise AssertionError("no client left before its first token")


@pytest.mark.slow
def test_storms_of_leaving_clients_leave_no_page_and_no_memory(tiny_server: ServeProcess) -> None:
    sizes: list[tuple[int, int]] = []
    with Canary(tiny_server):
        # The first ones fill the bounded caches of shapes that torch and the runner keep.
        for storm in range(6):
            _storm(tiny_server, seed=storm % 2)
            until(lambda: tiny_server.num_open <= 1)
            sizes.append((_resident(tiny_server.process.pid), _resident(tiny_server.engine_pid)))
    tiny_server.assert_all_pages_back(599)
    assert tiny_server.metric("drivetrain_requests_running") == 0
    assert tiny_server.metric("drivetrain_requests_waiting") == 0
    assert tiny_server.num_open == 0
    for first, last in zip(sizes[2], sizes[-1], strict=True):
        assert last < first * 1.15, sizes


def _storm(server: ServeProcess, seed: int) -> None:
    """200 clients, each of which leaves somewhere between its first byte and its last token."""
    rng = random.Random(seed)
    opened: list[tuple[float, socket.socket]] = []
    for client in range(200):
        body: dict[str, Any] = BODY | {
            "prompt": [rng.randrange(10, 500) for _ in range(rng.choice((3, 40, 300)))],
            "max_tokens": rng.choice((1, 20, 400)),
            "n": rng.choice((1, 1, 1, 3)),
            "stream": rng.random() < 0.7,
            "temperature": 1,
        }
        if rng.random() < 0.1:
            body["prompt_logprobs"] = 2
        cut = rng.uniform(0.2, 1.0) if rng.random() < 0.1 else 1.0
        connection = _open(server.port, body, part=cut)
        if rng.random() < 0.5:  # leaves with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        opened.append((time.monotonic() + rng.choice((0.0, 0.01, 0.1, 0.5)), connection))
        for due in [each for each in opened if each[0] <= time.monotonic()]:
            due[1].close()
            opened.remove(due)
        if client % 20 == 0:
            time.sleep(0.01)
    for leaves, connection in opened:
        time.sleep(max(leaves - time.monotonic(), 0))
        connection.close()


def _open(port: int, body: dict[str, Any], *, part: float = 1.0, receive_buffer: int | None = None) -> socket.socket:
    """A connection that has sent (a part of) a request."""
    payload = json.dumps(body).encode()
    fields = (
        "POST /v1/completions HTTP/1.1",
        "Host: localhost",
        "Authorization: Bearer one",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
    )
    whole = "\r\n".join(fields).encode() + b"\r\n\r\n" + payload
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(whole[: int(len(whole) * part)])
    return connection


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
