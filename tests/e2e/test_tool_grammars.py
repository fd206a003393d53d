"""Required calls from a real engine: a random model cannot help but call, and call rightly."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from fakes.serve_process import ServeProcess

BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string", "enum": ["single", "double"]},
                "nights": {"type": "integer", "minimum": 1, "maximum": 30},
                "extras": {"type": "array", "items": {"enum": ["bath", "view"]}, "maxItems": 2},
            },
            "required": ["room", "nights"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "A room, please."}],
    "tools": [BOOK, NOW],
    "max_tokens": 300,
    "temperature": 1,
}


def assert_fits(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert arguments == {}
        return
    assert call.function.name == "book"
    assert {"room", "nights"} <= set(arguments) <= {"room", "nights", "extras"}
    assert arguments["room"] in ("single", "double") and 1 <= arguments["nights"] <= 30
    assert set(arguments.get("extras", [])) <= {"bath", "view"}


@pytest.mark.parametrize("seed", range(4))
def test_required_and_named_calls_fit_their_schemas(tiny_server: ServeProcess, seed: int) -> None:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        one = client.chat.completions.create(**ASK, seed=seed, tool_choice="required", parallel_tool_calls=False)
        named = client.chat.completions.create(
            **ASK, seed=seed, parallel_tool_calls=False, tool_choice={"type": "function", "function": {"name": "book"}}
        )
        with client.chat.completions.stream(
            **ASK, seed=seed, tool_choice="required", parallel_tool_calls=False
        ) as stream:
            streamed = stream.get_final_completion()
    for answer in (one, named, streamed):
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        (call,) = choice.message.tool_calls or []
        assert_fits(call)
    assert named.choices[0].message.tool_calls[0].function.name == "book"
    (whole,), (pieces,) = one.choices[0].message.tool_calls, streamed.choices[0].message.tool_calls
    assert (whole.function.name, whole.function.arguments) == (pieces.function.name, pieces.function.arguments)


def test_a_schema_that_cannot_be_kept_is_refused(tiny_server: ServeProcess) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
        },
    }
    body = ASK | {"tools": [tool], "tool_choice": "required"}
    answer = tiny_server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "uniqueItems" in answer.json()["error"]["message"]
