"""Reasoning and tool calls in the words of each protocol, through each official client, there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from fakes.dialects import PLAIN, QWEN3, frontends_with
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

SAID = (
    "<think>\nThe user wants weather.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
THOUGHT = len("\nThe user wants weather.\n")
"""Tokens of the reasoning, each a byte."""
HELLO: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(says(SAID)), frontend=frontends_with(QWEN3)) as running:
        yield running


@pytest.fixture(params=[1, 7, 1000], autouse=True)
def batch(request: pytest.FixtureRequest, server: RunningServer) -> None:
    server.engine.batch = request.param


def prompt_of(server: RunningServer) -> str:
    return bytes(server.engine.requests[-1].prompt_ids).decode()


def test_anthropic(server: RunningServer) -> None:
    tools: Any = [
        {"name": each["name"], "description": each.get("description", ""), "input_schema": each["parameters"]}
        for each in FUNCTIONS
    ]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(model="tiny", max_tokens=500, messages=HELLO, tools=tools)
        with client.messages.stream(model="tiny", max_tokens=500, messages=HELLO, tools=tools) as stream:
            streamed = stream.get_final_message()
        for answer in (whole, streamed):
            blocks: list[Any] = answer.content
            assert [block.type for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
            assert (blocks[0].thinking, blocks[1].text) == ("The user wants weather.", "Let me look.")
            assert [(block.name, block.input) for block in blocks[2:]] == [
                ("get_weather", {"city": "Köln"}),
                ("now", {}),
            ]
            assert answer.stop_reason == "tool_use"
            assert answer.usage.output_tokens_details is not None
            assert answer.usage.output_tokens_details.thinking_tokens == THOUGHT
        result: Any = {
            "type": "tool_result",
            "tool_use_id": blocks[2].id,
            "content": [{"type": "text", "text": "Rain"}],
        }
        other: Any = {"type": "tool_result", "tool_use_id": blocks[3].id, "content": "Noon"}
        answered: list[Any] = [
            *HELLO,
            {"role": "assistant", "content": [block.model_dump() for block in blocks]},
            {"role": "user", "content": [result, other, {"type": "text", "text": "So?"}]},
        ]
        client.messages.create(model="tiny", max_tokens=500, messages=answered, tools=tools)
    prompt = prompt_of(server)
    assert prompt.index("Rain") < prompt.index("Noon") < prompt.index("So?")
    assert "get_weather" in prompt and "Köln" in prompt


ONE = SAID.index("}}") + len("}}") + 1
"""Tokens, each a byte, up to and with the first call; one of its letters has two."""


def test_an_answer_of_one_call_ends_with_it_in_every_protocol(server: RunningServer) -> None:
    """Not after what the model would have said behind it."""
    tools: Any = [{"type": "function", "function": each} for each in FUNCTIONS]
    flat: Any = [{"type": "function", "strict": False, **each} for each in FUNCTIONS]
    schemas: Any = [{"name": each["name"], "input_schema": each["parameters"]} for each in FUNCTIONS]
    last = ONE + server.engine.batch - 1
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: Any = {"model": "tiny", "messages": HELLO, "tools": tools, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**ask)
        with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as chunks:
            streamed = chunks.get_final_completion()
        for answer in (whole, streamed):
            [choice] = answer.choices
            [call] = choice.message.tool_calls
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
            assert json.loads(call.function.arguments) == {"city": "Köln"}
            assert ONE <= answer.usage.completion_tokens <= last
        first, second = client.chat.completions.create(**ask, n=2).choices
        assert first.message.tool_calls[0].function == second.message.tool_calls[0].function
        asked: Any = {"model": "tiny", "input": "Hi", "tools": flat, "parallel_tool_calls": False}
        with client.responses.stream(**asked) as events:
            kept = events.get_final_response()
        for response in (client.responses.create(**asked), kept):
            assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
            assert response.status == "completed" and response.usage is not None
            assert ONE <= response.usage.output_tokens <= last
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
        one: Any = {"type": "auto", "disable_parallel_tool_use": True}
        ask = {"model": "tiny", "max_tokens": 500, "messages": HELLO, "tools": schemas, "tool_choice": one}
        with claude.messages.stream(**ask) as stream:
            told = stream.get_final_message()
        for message in (claude.messages.create(**ask), told):
            assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
            assert message.stop_reason == "tool_use" and ONE <= message.usage.output_tokens <= last


def test_responses(server: RunningServer) -> None:
    tools: Any = [{"type": "function", "strict": False, **each} for each in FUNCTIONS]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.responses.create(model="tiny", input="Hi", tools=tools)
        with client.responses.stream(model="tiny", input="Hi", tools=tools) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        assert "response.reasoning_text.delta" in kinds
        assert kinds.count("response.function_call_arguments.done") == 2
        for answer in (whole, streamed):
            output: list[Any] = answer.output
            assert [item.type for item in output] == ["reasoning", "message", "function_call", "function_call"]
            assert output[0].content[0].text == "The user wants weather."
            assert answer.output_text == "Let me look."
            assert [(item.name, json.loads(item.arguments)) for item in output[2:]] == [
                ("get_weather", {"city": "Köln"}),
                ("now", {}),
            ]
            assert answer.usage is not None
            assert answer.usage.output_tokens_details.reasoning_tokens == THOUGHT
        results: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": said}
            for item, said in zip(whole.output[2:], ("Rain", "Noon"), strict=True)
        ]
        client.responses.create(model="tiny", input=results, previous_response_id=whole.id, tools=tools)
        kept = prompt_of(server)
        assert kept.index("Köln") < kept.index("Rain") < kept.index("Noon")
        # The client may as well send everything itself.
        history: Any = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in whole.output), *results]
        client.responses.create(model="tiny", input=history, tools=tools, store=False)
    assert prompt_of(server) == kept


def test_chat_tells_the_tokens_of_its_reasoning(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ask: Any = {"model": "tiny", "messages": HELLO}
        whole = client.chat.completions.create(**ask, n=2)
        options: Any = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(client.chat.completions.create(**ask, n=2, stream=True, stream_options=options))
        cut = client.chat.completions.create(**ask, max_tokens=len("<think>\nThe"), stop="so it is never found")
        told = [chunk.usage.completion_tokens_details.reasoning_tokens for chunk in chunks]  # type: ignore[union-attr]
        assert whole.usage.completion_tokens_details.reasoning_tokens == 2 * THOUGHT  # type: ignore[union-attr]
        assert cut.usage.completion_tokens_details.reasoning_tokens == len("\nThe")  # type: ignore[union-attr]
        assert (told[0], told[-1]) == (0, 2 * THOUGHT)
        if server.engine.batch == 1:
            assert len(set(told)) > THOUGHT, "it grows as the reasoning does"
    with (
        RunningServer(server.engine, frontend=frontends_with(PLAIN)) as plain,
        openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0) as client,
    ):
        content = client.chat.completions.create(**ask)
        assert content.usage.completion_tokens_details.reasoning_tokens == 0  # type: ignore[union-attr]
        assert client.responses.create(model="tiny", input="Hi").usage.output_tokens_details.reasoning_tokens == 0  # type: ignore[union-attr]


async def test_ollama(server: RunningServer) -> None:
    tools = [{"type": "function", "function": each} for each in FUNCTIONS]
    client = ollama.AsyncClient(host=server.url)
    whole = (await client.chat(model="tiny", messages=HELLO, tools=tools)).message
    thinking = content = ""
    calls: list[ollama.Message.ToolCall] = []
    async for part in await client.chat(model="tiny", messages=HELLO, tools=tools, stream=True):
        thinking += part.message.thinking or ""
        content += part.message.content or ""
        calls += part.message.tool_calls or []
    assert (whole.thinking, whole.content) == (thinking, content) == ("The user wants weather.", "Let me look.")
    for made in (whole.tool_calls, calls):
        assert made is not None
        assert [(call.function.name, call.function.arguments) for call in made] == [
            ("get_weather", {"city": "Köln"}),
            ("now", {}),
        ]
    answered = [
        *HELLO,
        whole,
        {"role": "tool", "content": "Rain", "tool_name": "get_weather"},
        {"role": "tool", "content": "Noon", "tool_name": "now"},
    ]
    await client.chat(model="tiny", messages=answered, tools=tools)
    await client._client.aclose()
    prompt = prompt_of(server)
    assert prompt.index("Köln") < prompt.index("Rain") < prompt.index("Noon")
