"""No body, however strange, gets a 5xx, and none makes an answer that grows with it."""

from __future__ import annotations

import asyncio
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.config.server import ServerConfig
from drivetrain_server.app import Application, create_app
from drivetrain_server.wire.chat import ChatRequest
from drivetrain_server.wire.completions import CompletionRequest
from drivetrain_server.wire.embeddings import EmbeddingRequest
from drivetrain_server.wire.messages import MessagesRequest
from drivetrain_server.wire.ollama import OllamaChat, OllamaEmbed, OllamaGenerate
from drivetrain_server.wire.responses import ResponsesRequest
from drivetrain_server.wire.unservable import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    OLLAMA,
    RESPONSES,
    Unservable,
)
from drivetrain_server.wire.unservable import (
    MESSAGES as MESSAGES_REFUSED,
)
from drivetrain_server.wire.validation import WireModel
from fakes.engine import FakeEngine
from fakes.server import frontend_factory

MESSAGES = [{"role": "user", "content": "Hi"}]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
small = st.integers(-2, 130) | st.floats(-3, 3) | st.booleans() | st.none() | st.text(max_size=3) | json_values


def _bodies(names: set[str], base: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    fields = st.dictionaries(st.sampled_from(sorted(names)), small, max_size=5)
    return fields.map(lambda chosen: base | chosen)


def _app() -> Application:
    return create_app(FakeEngine(), frontend_factory, ServerConfig())


async def _post(app: Application, path: str, raw: bytes) -> tuple[int, bytes]:
    """Status and body, straight through ASGI."""
    sent: list[dict[str, object]] = []
    parts = [raw]

    async def receive() -> dict[str, object]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])  # type: ignore[return-value, misc]


def _check(path: str, raw: bytes) -> None:
    async def run() -> tuple[int, bytes]:
        app = _app()
        await app.lifecycle.start()
        return await _post(app, path, raw)

    status, answer = asyncio.run(run())
    assert status in (200, 400, 404), answer
    if status != 200:
        error = orjson.loads(answer)["error"]
        assert error if isinstance(error, str) else error["message"]
        assert len(answer) < 2000


@settings(max_examples=150, deadline=None)
@given(_bodies(set(ChatRequest.model_fields) | CHAT.keys(), {"model": "tiny", "messages": MESSAGES}))
def test_strange_chat_fields_are_served_or_refused(body: dict[str, object]) -> None:
    _check("/v1/chat/completions", json.dumps(body).encode())


@settings(max_examples=150, deadline=None)
@given(_bodies(set(CompletionRequest.model_fields) | COMPLETIONS.keys(), {"model": "tiny", "prompt": "Hi"}))
def test_strange_completion_fields_are_served_or_refused(body: dict[str, object]) -> None:
    _check("/v1/completions", json.dumps(body).encode())


OTHERS: dict[str, tuple[type[WireModel], dict[str, Unservable], dict[str, object]]] = {
    "/v1/responses": (ResponsesRequest, RESPONSES, {"input": "Hi"}),
    "/v1/messages": (MessagesRequest, MESSAGES_REFUSED, {"messages": MESSAGES, "max_tokens": 5}),
    "/v1/embeddings": (EmbeddingRequest, EMBEDDINGS, {"input": "Hi"}),
    "/api/chat": (OllamaChat, OLLAMA, {"messages": MESSAGES}),
    "/api/generate": (OllamaGenerate, OLLAMA, {"prompt": "Hi"}),
    "/api/embed": (OllamaEmbed, {}, {"input": "Hi"}),
}


@pytest.mark.parametrize("path", OTHERS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_strange_fields_of_other_protocols_are_served_or_refused(path: str, data: st.DataObject) -> None:
    model, refused, base = OTHERS[path]
    body = data.draw(_bodies(set(model.model_fields) | refused.keys(), {"model": "tiny", **base}))
    _check(path, json.dumps(body).encode())


PLACES: dict[str, tuple[str, dict[str, object]]] = {
    "/v1/responses": ("input", {"type": "message", "role": "user", "content": "a"}),
    "/v1/messages": ("messages", {"role": "user", "content": [{"type": "text", "text": "a"}]}),
    "/api/chat": ("messages", {"role": "user", "content": "a", "tool_calls": []}),
}
words = st.sampled_from(
    ["type", "role", "content", "text", "call_id", "id", "output", "tool_calls", "summary", "input"]
)
kinds = st.sampled_from(["function_call", "function_call_output", "reasoning", "message", "assistant", "tool", "user"])


@pytest.mark.parametrize("path", PLACES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(words, kinds | json_values, max_size=4), min_size=1, max_size=3))
def test_strange_items_of_other_protocols_are_served_or_refused(path: str, changes: list[dict[str, object]]) -> None:
    name, item = PLACES[path]
    body = {"model": "tiny", "max_tokens": 5, name: [item | change for change in changes]}
    _check(path, json.dumps(body).encode())


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, max_size=3))
def test_strange_messages_are_served_or_refused(messages: list[object]) -> None:
    _check("/v1/chat/completions", json.dumps({"model": "tiny", "messages": messages}).encode())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_broken_bytes_are_refused(junk: bytes, at: int) -> None:
    whole = json.dumps({"model": "tiny", "messages": MESSAGES}).encode()
    _check("/v1/chat/completions", whole[:at] + junk + whole[at:])


def test_long_names_and_values_do_not_come_back_whole() -> None:
    _check("/v1/completions", json.dumps({"model": "tiny", "prompt": "a", "logit_bias": {"x" * 100_000: "y"}}).encode())
    _check("/v1/completions", json.dumps({"model": "m" * 100_000, "prompt": "a"}).encode())
    _check("/v1/completions", json.dumps({"model": "tiny", "prompt": "a", "temperature": "t" * 100_000}).encode())
