"""Text that holds what some clients take for the end of a line comes whole through every kind of stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

SAID = "a\u2028b\u2029c\u0085d\r\n\ndata: {x}\n\nevent: y\x0b\x0c\x1c\x1e\x7f\ufeff😀\U0010ffff\\\u2028."
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module", params=[1, 3, 1000])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    engine = FakeEngine(says(SAID))
    engine.batch = request.param
    with RunningServer(engine) as running:
        yield running


def told(server: RunningServer, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Events as a client reads them that splits text by whatever Unicode calls a line end."""
    with httpx.stream("POST", f"{server.url}{path}", json={"model": "tiny", "stream": True} | fields) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_ollamas_own_client_reads_its_lines(server: RunningServer) -> None:
    client = ollama.Client(host=server.url)
    try:
        assert "".join(part.message.content or "" for part in client.chat("tiny", HELLO, stream=True)) == SAID
        assert "".join(part.response for part in client.generate("tiny", "Hi", stream=True)) == SAID
    finally:
        client._client.close()


def test_events_are_whole_lines_for_every_reader(server: RunningServer) -> None:
    chat = told(server, "/v1/chat/completions", messages=HELLO)
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in chat) == SAID
    text = told(server, "/v1/completions", prompt="Hi", max_tokens=500)
    assert "".join(event["choices"][0]["text"] for event in text) == SAID
    response = told(server, "/v1/responses", input="Hi")
    assert "".join(event["delta"] for event in response if event["type"] == "response.output_text.delta") == SAID
    assert response[-1]["response"]["output"][0]["content"][0]["text"] == SAID
    message = told(server, "/v1/messages", messages=HELLO, max_tokens=500)
    assert "".join(event["delta"]["text"] for event in message if event["type"] == "content_block_delta") == SAID
