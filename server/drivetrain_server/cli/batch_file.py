"""Batch files in OpenAI's format: a request a line, answers in a file beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from drivetrain.errors import ConfigError

Json = dict[str, Any]
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """One request.

    Attributes:
        fault: why it cannot be asked; empty if it can.
    """

    custom_id: str
    url: str
    body: Json
    fault: str = ""


def check_ids(path: Path) -> int:
    """The number of requests in a file, each with an id of its own.

    Raises:
        ConfigError: the file cannot be read or is empty, or a line is no request or has no id or another one's.
    """
    seen: dict[str, int] = {}
    for number, entry in _entries(path):
        custom_id = entry.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise ConfigError(f"{path}:{number}: expected a text as custom_id, got {custom_id!r}")
        if custom_id in seen:
            raise ConfigError(f"{path}:{number}: custom_id {custom_id!r} is that of line {seen[custom_id]}; change it")
        seen[custom_id] = number
    if not seen:
        raise ConfigError(f"{path}: got no request, expected one a line")
    return len(seen)


def read_batch(path: Path, done: frozenset[str]) -> Iterator[BatchLine]:
    """The requests of a checked file that are not done, as they are needed."""
    for _, entry in _entries(path):
        custom_id = cast("str", entry["custom_id"])
        if custom_id not in done:
            yield _line(custom_id, entry)


def keep_answered(path: Path) -> frozenset[str]:
    """The ids that an earlier run has answered in an output file, which is cleared of everything else.

    A line that was cut off, and errors of the server (5xx), are asked again.

    Raises:
        ConfigError: the file is no output of a batch, so that it is left alone.
    """
    if not path.exists():
        return frozenset()
    kept: list[bytes] = []
    done: set[str] = set()
    lines = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        entry = _object(raw)
        if entry is None and number == len(lines):
            continue
        if entry is None or not isinstance(entry.get("custom_id"), str) or "response" not in entry:
            raise ConfigError(f"{path}:{number}: not the output of a batch; choose another --output")
        response: object = entry["response"]
        status = cast("Json", response).get("status_code") if isinstance(response, dict) else None
        if isinstance(status, int) and status < 500:
            kept.append(raw + b"\n")
            done.add(entry["custom_id"])
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(b"".join(kept))
    os.replace(beside, path)
    return frozenset(done)


def answer_line(line: BatchLine, request_id: str, status: int, raw: bytes) -> bytes:
    """An answer as a line of the output file."""
    response = {"status_code": status, "request_id": request_id, "body": orjson.loads(raw)}
    entry = {"id": f"batch_req_{request_id}", "custom_id": line.custom_id, "response": response, "error": None}
    return orjson.dumps(entry) + b"\n"


def _line(custom_id: str, entry: Json) -> BatchLine:
    method, url, body = entry.get("method", "POST"), entry.get("url"), entry.get("body")
    fault = ""
    if method != "POST":
        fault = f"method: expected POST, got {str(method)[:40]!r}"
    elif url not in URLS:
        fault = f"url: expected one of {', '.join(URLS)}, got {str(url)[:80]!r}"
    elif not isinstance(body, dict):
        fault = "body: expected an object"
    elif cast("Json", body).get("stream"):
        fault = "stream: answers in a file do not stream; leave it out"
    return BatchLine(
        custom_id=custom_id, url=str(url), body=cast("Json", body) if isinstance(body, dict) else {}, fault=fault
    )


def _entries(path: Path) -> Iterator[tuple[int, Json]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    entry = _object(raw)
                    if entry is None:
                        got = raw.strip()[:60].decode(errors="replace")
                        raise ConfigError(f"{path}:{number}: expected a JSON object, got {got}")
                    yield number, entry
    except OSError as error:
        raise ConfigError(f"{path}: cannot read requests: {error}") from error


def _object(raw: bytes) -> Json | None:
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return cast("Json", value) if isinstance(value, dict) else None
