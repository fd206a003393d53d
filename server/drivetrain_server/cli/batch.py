"""Answering a batch file: every line goes the way of a request over HTTP, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import orjson
from starlette.types import Message

from drivetrain.config import Config
from drivetrain.config.server import ServerConfig
from drivetrain_server.app import Application, create_app
from drivetrain_server.cli.batch_file import BatchLine, answer_line, check_ids, keep_answered, read_batch
from drivetrain_server.cli.engine import new_request_id
from drivetrain_server.cli.phases import following
from drivetrain_server.errors import HttpError

MAX_TRIES = 5
RETRY_LIMIT_S = 30.0


@dataclass(slots=True, kw_only=True)
class BatchCounts:
    """What came of a batch file. `failed` lines are answered too, with an error."""

    total: int
    before: int
    answered: int = 0
    failed: int = 0


async def run_batch(
    config: Config, source: Path, output: Path, *, on_start: Callable[[BatchCounts], Callable[[], None]]
) -> BatchCounts:
    """Answer every line of `source` that `output` has no answer to, and add the answers to it as they come.

    Args:
        on_start: told the counts once the engine is ready; gives what is called after each line.

    Raises:
        ConfigError: one of the files cannot be used.
        DrivetrainError: the engine could not start.
    """
    from drivetrain_server.cli.engine import frontend_factory, new_engine

    total = check_ids(source)
    done = keep_answered(output)
    counts = BatchCounts(total=total, before=len(done))
    if next(read_batch(source, done), None) is None:
        return counts
    engine = new_engine(config)
    app = create_app(engine, frontend_factory(config), _without_network(config.server))
    try:
        async with following(lambda: engine.phases):
            await app.lifecycle.start()
        tick = on_start(counts)
        lines = read_batch(source, done)
        at_once = config.engine.max_num_seqs + config.engine.max_waiting // 2
        with output.open("ab") as file:

            async def work() -> None:
                for line in lines:
                    await _answer(app, line, file, counts)
                    tick()

            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, total)):
                    group.create_task(work())
    finally:
        await engine.shutdown(drain_s=0.0)
    return counts


def _without_network(config: ServerConfig) -> ServerConfig:
    """The server's settings, less those that only matter to clients of a network."""
    return replace(config, host="127.0.0.1", api_keys=(), api_keys_file=None, max_requests_per_key=None)


async def _answer(app: Application, line: BatchLine, file: BinaryIO, counts: BatchCounts) -> None:
    request_id = new_request_id()
    if line.fault:
        status, raw = 400, HttpError(400, line.fault, param=line.fault.partition(":")[0]).body()
    else:
        status, raw = await _ask_again(app, line, request_id)
    file.write(answer_line(line, request_id, status, raw))
    file.flush()
    counts.answered += 1
    counts.failed += status >= 400


async def _ask_again(app: Application, line: BatchLine, request_id: str) -> tuple[int, bytes]:
    """Ask until there is an answer other than "not now"."""
    for tried in range(1, MAX_TRIES + 1):
        status, headers, raw = await ask(app, line.url, orjson.dumps(line.body), request_id)
        after = headers.get(b"retry-after")
        if status != 503 or after is None or tried == MAX_TRIES:
            return status, raw
        await asyncio.sleep(min(float(after), RETRY_LIMIT_S))
    raise AssertionError("the last try returns")


async def ask(app: Application, path: str, body: bytes, request_id: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """(status, headers, body) of one POST, handed to the application itself."""
    parts = [body]
    sent: list[Message] = []

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("nobody disconnects")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])
