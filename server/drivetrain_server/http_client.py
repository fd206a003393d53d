"""A small HTTP/1.1 client on asyncio streams: one connection a request, bodies and server-sent events.

For `chat --url` and `bench`, which must not disturb what they measure and need no more than this.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from drivetrain.errors import DrivetrainError
from drivetrain.version import __version__

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
CONNECT_TIMEOUT_S = 10.0

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class ConnectionFailed(DrivetrainError):
    """No server answers at this address, or it broke off."""


class HttpError(DrivetrainError):
    """The server answered with an error. `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server: `http://127.0.0.1:8000`, with or without `/v1`, and the key it wants.

    Raises:
        ConnectionFailed: the address is not an HTTP URL.
    """

    url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConnectionFailed(f'url: got "{self.url}", expected an address such as http://127.0.0.1:8000')

    def path(self, route: str) -> str:
        """The path of `/v1/...` or another route at this server."""
        base = urlsplit(self.url).path.rstrip("/")
        return base.removesuffix("/v1") + route


class Response:
    """An answer whose body is read as it comes."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def read(self) -> bytes:
        """The whole body."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise ConnectionFailed(
                    f"the server sent more than {MAX_BODY_BYTES} bytes; is this an inference server?"
                )
        return bytes(body)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in the pieces that arrive.

        Raises:
            ConnectionFailed: it breaks off, or its framing is wrong.
        """
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    yield await self._reader.readexactly(size)
                    await self._reader.readexactly(2)
            elif (length := self.headers.get("content-length")) is not None:
                left = int(length)
                while left:
                    piece = await self._reader.read(min(left, 65536))
                    if not piece:
                        raise asyncio.IncompleteReadError(b"", left)
                    left -= len(piece)
                    yield piece
            else:
                while piece := await self._reader.read(65536):
                    yield piece
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ConnectionFailed("the server broke off in the middle of its answer") from error
        except ValueError as error:
            raise ConnectionFailed(f"the server's answer is not framed as HTTP says: {error}") from error

    async def events(self) -> AsyncGenerator[str, None]:
        """The `data` of each server-sent event; comments and other fields are skipped."""
        pending = b""
        data: list[str] = []
        async for chunk in self.chunks():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in (raw.removesuffix(b"\r") for raw in lines):
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" ").decode())
                elif not line and data:
                    yield "\n".join(data)
                    data = []


@asynccontextmanager
async def request(
    endpoint: Endpoint, method: str, route: str, body: Json = None, *, check: bool = True
) -> AsyncGenerator[Response, None]:
    """Send one request; the connection closes when the block ends, which also cancels a stream.

    Args:
        check: raise `HttpError` for a status of 400 and above.

    Raises:
        ConnectionFailed: no server there, or not one that speaks HTTP.
        HttpError: its message is the server's own.
    """
    reader, writer = await _connect(endpoint)
    try:
        try:
            writer.write(_head(endpoint, method, route, body))
            await writer.drain()
            response = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise ConnectionFailed(f"{endpoint.url}: no HTTP answer: {error}") from error
        if check and response.status >= 400:
            raise HttpError(_message(await response.read(), response.status), status=response.status)
        yield response
    finally:
        writer.close()


async def get_json(endpoint: Endpoint, route: str) -> Json:
    """The JSON that a GET of `route` answers with.

    Raises:
        ConnectionFailed, HttpError: as `request`.
    """
    async with request(endpoint, "GET", route) as response:
        return parse_json(await response.read())


async def served_model(endpoint: Endpoint) -> str:
    """The id of the first model that the server lists.

    Raises:
        ConnectionFailed, HttpError: as `request`, or the list has another shape.
    """
    match await get_json(endpoint, "/v1/models"):
        case {"data": [{"id": str(model)}, *_]}:
            return model
        case other:
            raise ConnectionFailed(f"{endpoint.url}/v1/models: expected a list of models, got {str(other)[:200]}")


async def check_reachable(endpoint: Endpoint) -> None:
    """Find out that a server answers there and takes the key, whether or not it lists models.

    Raises:
        ConnectionFailed, HttpError: as `request`.
    """
    async with request(endpoint, "GET", "/v1/models", check=False) as response:
        if response.status in (401, 403):
            raise HttpError(_message(await response.read(), response.status), status=response.status)


def parse_json(text: str | bytes) -> Json:
    """The JSON of a body or event.

    Raises:
        ConnectionFailed: it is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConnectionFailed(f"the server's answer is not JSON: {text[:200]!r}") from error


async def _connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(endpoint.url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    opening = asyncio.open_connection(parts.hostname, port, ssl=context, limit=MAX_HEAD_BYTES)
    try:
        return await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
        raise ConnectionFailed(
            f"{endpoint.url}: cannot connect: {reason}; is the server running? `drivetrain serve MODEL` starts one"
        ) from error


def _head(endpoint: Endpoint, method: str, route: str, body: Json) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {endpoint.path(route)} HTTP/1.1",
        f"Host: {urlsplit(endpoint.url).netloc.rpartition('@')[2]}",
        f"User-Agent: drivetrain/{__version__}",
        "Accept: application/json, text/event-stream",
        "Connection: close",
    ]
    if endpoint.api_key:
        lines.append(f"Authorization: Bearer {endpoint.api_key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join([*lines, "", ""]).encode() + payload


async def _answer(reader: asyncio.StreamReader) -> Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    version, status, *_ = *first.split(" "), ""
    if not (version.startswith("HTTP/1.") and status.isdecimal()):
        raise ValueError(f"got {first[:80]!r} instead of a status line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Response(int(status), headers, reader)


def _message(body: bytes, status: int) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    match parsed:
        case {"error": {"message": str(message)}}:
            said = message
        case _:
            said = body[:500].decode(errors="replace").strip() or "no reason given"
    hint = "; give its key with --api-key or OPENAI_API_KEY" if status == 401 else ""
    return f"the server answered {status}: {said}{hint}"
