"""A tiny HTTP server for tests of clients: answers with what a function says, chunked, byte by byte if asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Answer:
    """`parts` are sent one after the other, with `pause_s` before each; `chunked` False sends them bare and closes."""

    parts: list[bytes]
    status: int = 200
    chunked: bool = True
    length: int | str | None = None
    headers: tuple[str, ...] = ()
    pause_s: float = 0.0
    cut: bool = False


@dataclass
class SseServer:
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], object]] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    disconnects: int = 0


@asynccontextmanager
async def sse_server(answer: Callable[[str, object], Answer]) -> AsyncIterator[SseServer]:
    server = SseServer()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.open += 1
        server.most_open = max(server.most_open, server.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            parsed = json.loads(body) if body else None
            server.requests.append((method, path, headers, parsed))
            await reply(writer, answer(path, parsed))
        except ConnectionError:
            server.disconnects += 1
        finally:
            server.open -= 1
            writer.close()

    async def reply(writer: asyncio.StreamWriter, said: Answer) -> None:
        lines = [f"HTTP/1.1 {said.status} Status", *said.headers]
        if said.chunked:
            lines.append("Transfer-Encoding: chunked")
        if said.length is not None:
            lines.append(f"Content-Length: {said.length}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in said.parts:
            await asyncio.sleep(said.pause_s)
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n" if said.chunked else part)
            await writer.drain()
        if said.chunked and not said.cut:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}"
    async with listening:
        yield server


def events(*payloads: object, done: bool = True) -> list[bytes]:
    """Server-sent events, one a part."""
    parts = [b"data: " + json.dumps(payload).encode() + b"\n\n" for payload in payloads]
    return [*parts, b"data: [DONE]\n\n"] if done else parts


async def collect(stream: AsyncGenerator[str, None]) -> list[str]:
    return [item async for item in stream]
