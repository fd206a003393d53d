"""Anthropic's messages through the official client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says("Hello there!")), api_keys=("secret",)) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as made:
        yield made


def prompt_of(server: RunningServer) -> str:
    return bytes(server.engine.requests[-1].prompt_ids).decode()


def test_answer_has_blocks_reason_and_usage(server: RunningServer, client: anthropic.Anthropic) -> None:
    server.engine.cached = 4
    answer = client.messages.create(model="tiny", max_tokens=50, messages=HELLO, system="Be brief.")
    server.engine.cached = 0
    assert [(block.type, block.text) for block in answer.content] == [("text", "Hello there!")]  # type: ignore[union-attr]
    assert (answer.role, answer.model, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "tiny",
        "end_turn",
        None,
    )
    assert answer.id.startswith("msg_")
    assert prompt_of(server) == "system: Be brief.\nuser: Hi\nassistant: "
    assert answer.usage.input_tokens == len(prompt_of(server)) - 4
    assert answer.usage.cache_read_input_tokens == 4
    assert answer.usage.output_tokens == 13


def test_the_clients_stream_helper_gathers_the_same_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="tiny", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "Hello there!"
        message = stream.get_final_message()
    assert [(block.type, block.text) for block in message.content] == [("text", "Hello there!")]  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 13
    events = list(client.messages.create(model="tiny", max_tokens=50, messages=HELLO, stream=True))
    kinds = [event.type for event in events]
    assert {event.index for event in events if event.type == "content_block_delta"} == {0}
    assert [kind for kind in kinds if kind not in ("ping", "content_block_delta")] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_the_async_client(server: RunningServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="secret") as client:
        answer = await client.messages.create(model="tiny", max_tokens=5, messages=HELLO)
        assert (answer.content[0].text, answer.stop_reason) == ("Hello", "max_tokens")  # type: ignore[union-attr]
        async with client.messages.stream(model="tiny", max_tokens=5, messages=HELLO) as stream:
            assert [text async for text in stream.text_stream] == list("Hello")


def test_stop_sequences_and_sampling(server: RunningServer, client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="tiny",
        max_tokens=50,
        messages=HELLO,
        stop_sequences=["there"],
        extra_body={"temperature": 0.5, "top_k": 5, "top_p": 0.9},
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "there")
    assert answer.content[0].text == "Hello "  # type: ignore[union-attr]
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.5, 5, 0.9, 50)


def test_blocks_and_a_prefilled_answer(server: RunningServer, client: anthropic.Anthropic) -> None:
    cached: Any = {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}
    client.messages.create(
        model="tiny",
        max_tokens=5,
        system=[cached, {"type": "text", "text": "B"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "one"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "The answer"}]},
        ],
    )
    assert prompt_of(server) == "system: A\n\nB\nuser: one\nassistant: The answer"


def test_count_tokens_counts_the_prompt(server: RunningServer, client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.")
    answer = client.messages.create(model="tiny", max_tokens=1, messages=HELLO, system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"system": [5]}, "system[0]"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_refusals_are_in_anthropics_shape(server: RunningServer, changes: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "max_tokens": 5, "messages": HELLO} | changes
    answer = httpx.post(f"{server.url}/v1/messages", json=body, headers={"x-api-key": "secret"})
    assert answer.status_code == 400
    said = answer.json()
    assert (said["type"], said["error"]["type"], said["error"]["param"]) == ("error", "invalid_request_error", param)


def test_a_limit_behind_the_context_is_the_context(server: RunningServer, client: anthropic.Anthropic) -> None:
    script, server.engine.script = server.engine.script, lambda request, index: [*b"a" * 40]
    try:
        for limit, reason in ((20_000, "model_context_window_exceeded"), (10, "max_tokens")):
            answer = client.messages.create(model="tiny", max_tokens=limit, messages=HELLO)
            assert (answer.stop_reason, server.engine.requests[-1].params.max_tokens) == (
                reason,
                None if limit > 10 else 10,
            )
            events = list(client.messages.create(model="tiny", max_tokens=limit, messages=HELLO, stream=True))
            assert [event.delta.stop_reason for event in events if event.type == "message_delta"] == [reason]
    finally:
        server.engine.script = script


def test_keys_come_either_way_and_errors_are_the_clients_own(server: RunningServer) -> None:
    for headers in ({"api_key": "wrong"}, {"auth_token": "wrong"}):
        with (
            anthropic.Anthropic(base_url=server.url, max_retries=0, **headers) as client,  # type: ignore[arg-type]
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(model="tiny", max_tokens=5, messages=HELLO)
    with anthropic.Anthropic(base_url=server.url, auth_token="secret", max_retries=0) as client:
        assert client.messages.create(model="tiny", max_tokens=5, messages=HELLO).content
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="other", max_tokens=5, messages=HELLO)


def test_an_error_in_a_stream_is_an_event(server: RunningServer, client: anthropic.Anthropic) -> None:
    server.engine.fail_at = 3
    try:
        with pytest.raises(anthropic.APIStatusError, match="page 7 was lost"):
            list(client.messages.create(model="tiny", max_tokens=50, messages=HELLO, stream=True))
    finally:
        server.engine.fail_at = None
