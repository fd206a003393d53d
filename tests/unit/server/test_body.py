"""The body of a request is bounded by what has come in all, however it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from drivetrain_server.body import read_json
from drivetrain_server.errors import HttpError
from drivetrain_server.exchange import ClientGone, Exchange

LIMIT = 100


def request(
    *parts: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), whole: bool = True
) -> tuple[Exchange, list[bytes]]:
    """An exchange whose body comes in these parts; `whole` ends it, else the client leaves; and the parts not read."""
    left = list(parts)

    async def receive() -> dict[str, object]:
        if not left:
            return {"type": "http.disconnect"}
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left) or not whole}

    async def send(message: object) -> None:
        raise AssertionError("reading a body answers nothing")

    named = [(b"content-type", b"application/json"), *headers]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": named}
    return Exchange(scope, receive, send, request_id="r"), left


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[at : at + size] for at in range(0, len(raw), size))


def test_parts_that_are_small_count_together() -> None:
    exchange, left = request(*pieces(b'{"a": "' + b"x" * 1000 + b'"}', 30))
    with pytest.raises(HttpError, match=r"larger than 100 bytes") as caught:
        asyncio.run(read_json(exchange, LIMIT))
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert len(left) == 34 - 4, "it stops at the part that is too much"


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_body_of_just_the_limit_is_read_however_it_is_cut(size: int) -> None:
    raw = b'{"a": "' + b"x" * 91 + b'"}'
    assert len(raw) == LIMIT
    exchange, _ = request(*pieces(raw, size))
    assert asyncio.run(read_json(exchange, LIMIT)) == {"a": "x" * 91}


def test_a_length_that_is_declared_is_refused_before_a_byte_is_read() -> None:
    exchange, left = request(b"{}", headers=((b"content-length", b"101"),))
    with pytest.raises(HttpError) as caught:
        asyncio.run(read_json(exchange, LIMIT))
    assert (caught.value.status, left) == (413, [b"{}"])


def test_a_client_that_leaves_amid_its_body_is_gone() -> None:
    exchange, _ = request(b'{"a"', whole=False)
    with pytest.raises(ClientGone):
        asyncio.run(read_json(exchange, LIMIT))
