"""Errors name the field and the kind that the client meant, whatever pydantic calls the alternatives of a union."""

from __future__ import annotations

from typing import Any

import pytest

from drivetrain_server.errors import HttpError
from drivetrain_server.wire.messages import CHAT_NAMES, MessagesRequest
from drivetrain_server.wire.ollama import OllamaChat, OllamaEmbed, OllamaModel
from drivetrain_server.wire.responses import ResponsesRequest, messages_of
from drivetrain_server.wire.validation import WireModel, parse, renamed

MESSAGES = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
RESPONSE = {"model": "tiny", "input": "a"}
OLLAMA = {"model": "tiny"}


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (ResponsesRequest, {"model": "tiny", "input": 5}, "input: expected a string or an array; got 5"),
        (ResponsesRequest, {"model": "tiny", "input": []}, "input: expected at least 1 item; got an array of 0"),
        (
            ResponsesRequest,
            {"model": "tiny", "input": {"str": 5}},
            "input: expected a string or an array; got an object with 1 field",
        ),
        (ResponsesRequest, {"model": "tiny", "input": [{}, "a", 5]}, "input[1]: expected an object; got 'a'"),
        (ResponsesRequest, RESPONSE | {"tool_choice": 5}, "tool_choice: expected a string or an object; got 5"),
        (ResponsesRequest, RESPONSE | {"text": {"format": []}}, "text.format: expected an object; got an array of 0"),
        (ResponsesRequest, RESPONSE | {"metadata": {"a": 1}}, "metadata.a: expected a string; got 1"),
        (
            ResponsesRequest,
            RESPONSE | {"metadata": {"b" * 65: "c"}},
            f"metadata.{'b' * 60}: its name: expected at most 64 characters; got '{'b' * 59}...",
        ),
        (ResponsesRequest, RESPONSE | {"metadata": {"[key]": 1}}, "metadata.[key]: expected a string; got 1"),
        (MessagesRequest, MESSAGES | {"system": 5}, "system: expected a string or an array; got 5"),
        (MessagesRequest, MESSAGES | {"system": [{}, 5]}, "system[1]: expected an object; got 5"),
        (MessagesRequest, {"model": "tiny", "messages": []}, "messages: expected at least 1 item; got an array of 0"),
        (MessagesRequest, MESSAGES | {"thinking": {}}, "thinking.type: this field is required and was not sent"),
        (OllamaChat, OLLAMA | {"format": 5}, "format: expected a string or an object; got 5"),
        (
            OllamaChat,
            OLLAMA | {"think": "much"},
            "think: expected true or false or 'low', 'medium' or 'high'; got 'much'",
        ),
        (
            OllamaModel,
            OLLAMA | {"keep_alive": []},
            "keep_alive: expected a string, an integer or a number; got an array",
        ),
        (OllamaModel, {"model": ""}, "model: expected at least 1 character; got ''"),
        (OllamaEmbed, OLLAMA | {"input": ["a", 5]}, "input: expected a string, or 1 to 2048 of them; item 1 is 5; got"),
    ],
)
def test_the_message_is_about_what_was_sent(model: type[WireModel], body: dict[str, Any], message: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse(model, body)
    assert caught.value.message.startswith(message)
    assert caught.value.param == message.partition(":")[0]


@pytest.mark.parametrize(
    ("param", "message", "named", "told"),
    [
        ("tools[3].function.name", "tools[3].function.name: bad", "tools[3].name", "tools[3].name: bad"),
        (
            "tools[12].function.parameters.properties[0]",
            "tools[12].function.parameters.properties[0]: bad",
            "tools[12].input_schema.properties[0]",
            "tools[12].input_schema.properties[0]: bad",
        ),
        ("tools[1]", "tools[1]: bad", "tools[1]", "tools[1]: bad"),
        ("tool_choice", "tool_choice: no \"stop\" in 'reasoning_effort'", "tool_choice", None),
        ("stop[2]", "stop[2]: bad", "stop_sequences[2]", "stop_sequences[2]: bad"),
        ("prompt", "too long; lower max_completion_tokens", "messages", "too long; lower max_tokens"),
        (
            "response_format.json_schema.schema",
            "response_format.json_schema.schema: bad",
            "output_config.format.schema",
            "output_config.format.schema: bad",
        ),
    ],
)
def test_names_of_ours_become_those_of_the_api(param: str, message: str, named: str, told: str | None) -> None:
    error = renamed(HttpError(400, message, param=param), CHAT_NAMES)
    assert (error.param, error.message) == (named, told or message)


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"role": "user", "content": ["a"]}], "input[0].content[0]"),
        ([{"role": "user", "content": "a"}, {"type": "reasoning", "content": "b"}], "input[1].content"),
    ],
)
def test_items_of_a_wrong_kind_are_refused_where_they_are(items: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(HttpError) as caught:
        messages_of(items)
    assert caught.value.param == param and caught.value.message.startswith(f"{param}: expected an ")
