"""Bytes that are not the HTTP that we expect."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from fakes.engine import FakeEngine
from fakes.server import RunningServer

LIMIT = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(), max_header_bytes=LIMIT) as running:
        yield running


def _raw(server: RunningServer, *parts: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while chunk := connection.recv(65536):
                said += chunk
        except ConnectionError:
            pass
    return said


def _get(header: bytes) -> bytes:
    return b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + header + b"\r\n"


def test_head_at_the_limit_is_read(server: RunningServer) -> None:
    assert _raw(server, _get(b"a: " + b"b" * (LIMIT - 200) + b"\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [LIMIT, 60_000, 1_000_000])
def test_head_over_the_limit_is_431_or_cut(server: RunningServer, size: int) -> None:
    said = _raw(server, _get(b"a: " + b"b" * size + b"\r\n"))
    assert said.startswith(b"HTTP/1.1 431") or (said == b"" and size == 1_000_000)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_many_small_headers_count_together(server: RunningServer) -> None:
    said = _raw(server, _get(b"".join(b"h%d: x\r\n" % i for i in range(1000))))
    assert said.startswith(b"HTTP/1.1 431") and b'"request_head_too_large"' in said


def test_long_url_counts_as_head(server: RunningServer) -> None:
    said = _raw(server, b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 431")


def test_endless_chunk_extension_is_cut(server: RunningServer) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    said = _raw(server, head, b"5;x=" + b"a" * 200_000)
    assert said == b"" or said.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
def test_other_protocols_get_a_400_in_json(server: RunningServer, junk: bytes) -> None:
    said = _raw(server, junk)
    assert said.startswith(b"HTTP/1.1 400") and b'"invalid_http"' in said


def test_large_body_in_small_chunks_is_not_taken_for_a_head(server: RunningServer) -> None:
    body = b'{"prompt": "' + b"a" * 20_000 + b'"}'
    chunks = (body[at : at + 10] for at in range(0, len(body), 10))
    answer = httpx.post(f"{server.url}/tokenize", content=chunks, headers={"content-type": "application/json"})
    assert answer.json()["count"] == 20_001
