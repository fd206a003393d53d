"""The body of a request: bounded bytes, then strict JSON."""

from __future__ import annotations

import asyncio
from typing import cast

import orjson

from drivetrain_server.errors import HttpError
from drivetrain_server.exchange import ClientGone, Exchange

BODY_TIMEOUT_S = 60.0
JsonObject = dict[str, object]


async def read_json(exchange: Exchange, max_bytes: int) -> JsonObject:
    """The JSON object that a request carries.

    Raises:
        HttpError: 415 for another media type, 413 past `max_bytes` (counted, whatever Content-Length says), 408 when
            the body does not arrive in time, 400 for anything but one JSON object in UTF-8.
        ClientGone: the connection closed before the body was complete.
    """
    _check_type(exchange)
    return parse_object(await _read(exchange, max_bytes))


def parse_object(raw: bytes) -> JsonObject:
    """One JSON object. NaN, infinities, lone surrogates and deep nesting are refused by the parser.

    Raises:
        HttpError: 400, with the place of the mistake.
    """
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise HttpError(
            400, f"the body is not valid JSON: {error}; send one JSON object", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the body is a JSON {_json_type(value)}; send one JSON object", code="invalid_json")
    return cast("JsonObject", value)


def _check_type(exchange: Exchange) -> None:
    media = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    # Ollama never asked for the header: its documented curl calls send that of a form. A form of a web page could do
    # the same to a server on the reader's machine, but browsers say where it comes from.
    any_type = exchange.path.startswith("/api/") and not _from_browser(exchange)
    if media != b"application/json" and not any_type:
        got = media.decode("ascii", "replace") or "none"
        raise HttpError(
            415,
            f"Content-Type: expected application/json, got {got[:80]}; set the header",
            code="unsupported_media_type",
        )
    encoding = (exchange.header(b"content-encoding") or b"identity").strip().lower()
    if encoding != b"identity":
        raise HttpError(
            415, "Content-Encoding: compressed bodies are not read; send plain JSON", code="unsupported_encoding"
        )


def _from_browser(exchange: Exchange) -> bool:
    return any(exchange.header(name) is not None for name in (b"origin", b"sec-fetch-site"))


async def _read(exchange: Exchange, max_bytes: int) -> bytes:
    declared = exchange.header(b"content-length")
    if declared is not None and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await exchange.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise HttpError(
            408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", code="request_timeout", close=True
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"the body is larger than {max_bytes} bytes; send less at once", code="request_too_large")


def _json_type(value: object) -> str:
    kinds: dict[type, str] = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")
